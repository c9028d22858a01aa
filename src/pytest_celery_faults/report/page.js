"use strict";
(() => {
  // Whatever comes from a test is put into the page as text: by `textContent` and by attributes that hold text.
  const byId = id => document.getElementById(id);
  const read = id => JSON.parse(byId(id).textContent);
  const run = read("run");

  function node(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }
  function drawn(tag, attributes = {}, ...children) {
    return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  }
  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter(child => child !== null && child !== undefined));
    return element;
  }

  // -- words

  const plural = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
  const round = (value, digits) => String(Number(value.toFixed(digits)));
  function length(seconds) {
    if (seconds === 0) return "0 s";
    if (seconds < 0.001) return `${round(seconds * 1e6, 0)} µs`;
    if (seconds < 1) return `${round(seconds * 1e3, seconds < 0.1 ? 2 : 0)} ms`;
    if (seconds < 120) return `${round(seconds, 2)} s`;
    if (seconds < 7200) return `${round(seconds / 60, 1)} min`;
    if (seconds < 172800) return `${round(seconds / 3600, 1)} h`;
    return `${round(seconds / 86400, 1)} days`;
  }
  const exact = seconds => `${round(seconds, 6)} s`;
  // On an axis a sum of delays has to be told from its neighbours.
  const moment = seconds => (seconds < 1 || seconds >= 7200 || seconds % 60 === 0 ? length(seconds) : `${round(seconds, 2)} s`);

  const SIGNS = {
    passed: "✓", failed: "✗", error: "✗", skipped: "–", xfailed: "✓", xpassed: "✗", rerun: "↻", interrupted: "■",
  };
  const badge = outcome =>
    node("span", { class: `badge is-${outcome}`, "data-sign": SIGNS[outcome] || "•" }, outcome);

  // -- the run as a whole

  function total(key) {
    const counts = new Map();
    for (const test of run.tests) {
      for (const [name, count] of Object.entries(test[key])) counts.set(name, (counts.get(name) || 0) + count);
    }
    return [...counts].sort((one, other) => other[1] - one[1]);
  }
  function card(title, ...content) {
    return node("section", { class: "card" }, node("h3", {}, title), ...content);
  }
  function counted(title, pairs, tone, none) {
    if (!pairs.length) return card(title, node("p", { class: "quiet" }, none));
    const most = Math.max(...pairs.map(pair => pair[1]));
    const list = some => node("ul", { class: "counts" }, ...some.map(([name, count]) => {
      const meter = node("i");
      meter.style.width = `${(100 * count) / most}%`;
      return node(
        "li", { class: tone || `is-${name}` },
        node("span", { class: "what" }, name), node("span", { class: "number" }, count.toLocaleString("en")),
        node("span", { class: "meter", "aria-hidden": "true" }, meter),
      );
    }));
    const first = card(title, list(pairs.slice(0, 6))), rest = pairs.slice(6);
    if (rest.length) first.append(node("details", { class: "more" }, node("summary", {}, `${rest.length} more`), list(rest)));
    return first;
  }
  function showOverview() {
    const sum = key => run.tests.reduce((before, test) => before + test[key], 0);
    const versions = Object.entries(run.versions).map(([name, version]) => `${name} ${version}`).join(", ");
    byId("about").append(
      `${new Date(run.began * 1000).toLocaleString(undefined, { dateStyle: "long", timeStyle: "short" })}, in ${length(run.took)}. ${versions}, seed ${run.seed}.`,
    );
    const overview = byId("overview");
    const ended = { 2: "The run was interrupted: these are the tests until then.", 3: "pytest itself failed: these are the tests until then." };
    if (ended[run.exit]) overview.append(node("p", { class: "note card wide" }, ended[run.exit]));
    const others = Object.entries(run.others);
    const besides = others.map(([name, count]) => `${count.toLocaleString("en")} ${name}`).join(", ");
    if (!run.tests.length) {
      overview.append(
        node("p", { class: "note card wide" }, "No test of this run used the plugin, so there is nothing to show. ",
          others.length ? `Other tests: ${besides}.` : "No other test ran either."),
      );
      byId("tests").hidden = true;
      return;
    }
    const outcomes = new Map();
    for (const test of run.tests) outcomes.set(test.outcome, (outcomes.get(test.outcome) || 0) + 1);
    const tests = counted("Tests by outcome", [...outcomes], "", "");
    if (others.length) tests.append(node("p", { class: "quiet" }, `And without the plugin: ${besides}.`));
    const elapsed = sum("elapsed"), real = sum("real");
    overview.append(
      tests,
      counted("Tasks by state", total("states"), "", "No task was sent."),
      counted("Faults by kind", total("faults"), "is-fault", "No fault fired."),
      counted("Dead letters by reason", total("letters"), "is-letter", "Nothing ended badly."),
      card(
        "Virtual time", node("p", { class: "big" }, length(elapsed)),
        node("p", { class: "quiet" }, `in ${length(real)} of real time` +
          (real > 0 && elapsed > real ? `, ${Math.round(elapsed / real).toLocaleString("en")} times as fast` : "")),
        node("p", { class: "quiet" }, `${plural(sum("executions"), "execution")} of tasks, ${plural(sum("events"), "event")}`),
      ),
    );
    const slowest = run.tests.map((test, place) => [test.real, place]).sort((one, other) => other[0] - one[0]).slice(0, 6);
    const list = slowest.map(([seconds, place]) => {
      const link = node("a", { href: `#t${place}` }, run.tests[place].id);
      return node("li", {}, link, ` ${length(seconds)}`);
    });
    const slow = card("Slowest tests, in real time", node("ol", { class: "slow" }, ...list));
    slow.classList.add("wide");
    overview.append(slow);
  }

  // -- the list of tests, and what is chosen of it

  const BATCH = 100;
  let chosen = [];
  let shown = 0;

  function options(id, all, names) {
    byId(id).append(node("option", { value: "" }, all), ...names.map(name => node("option", { value: name }, name)));
  }
  function showFilter() {
    const distinct = names => [...new Set(names)];
    options("outcome", "any outcome", distinct(run.tests.map(test => test.outcome)));
    options("task", "any task", distinct(run.tests.flatMap(test => test.tasks)).sort());
    options("fault", "any", distinct(run.tests.flatMap(test => Object.keys(test.faults))).sort());
    for (const test of run.tests) {
      test.words = [test.id, test.outcome, ...test.tasks, ...Object.keys(test.faults), ...Object.keys(test.letters), ...test.says]
        .join("\n").toLowerCase();
    }
    const form = byId("filter");
    form.addEventListener("input", choose);
    form.addEventListener("submit", event => event.preventDefault());
    byId("clear").addEventListener("click", clear);
    byId("more").addEventListener("click", () => showMore(true));
    if ("IntersectionObserver" in window) {
      new IntersectionObserver(entries => entries.some(entry => entry.isIntersecting) && showMore(false), {
        rootMargin: "600px",
      }).observe(byId("more"));
    }
  }
  function clear() {
    for (const id of ["text", "outcome", "task", "fault"]) byId(id).value = "";
    choose();
  }
  function choose() {
    const words = byId("text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [outcome, task, fault] = ["outcome", "task", "fault"].map(id => byId(id).value);
    chosen = run.tests.map((_, place) => place).filter(place => {
      const test = run.tests[place];
      return (
        (!outcome || test.outcome === outcome) && (!task || test.tasks.includes(task)) &&
        (!fault || Object.hasOwn(test.faults, fault)) && words.every(word => test.words.includes(word))
      );
    });
    byId("count").textContent = chosen.length === run.tests.length
      ? plural(chosen.length, "test") : `${plural(chosen.length, "test")} of ${run.tests.length.toLocaleString("en")}`;
    byId("list").replaceChildren();
    shown = 0;
    showMore(false);
  }
  function showMore(focus) {
    const batch = chosen.slice(shown, shown + BATCH).map(entry);
    byId("list").append(...batch);
    shown += batch.length;
    const more = byId("more"), rest = chosen.length - shown;
    more.hidden = rest <= 0;
    more.textContent = `Show ${Math.min(rest, BATCH)} more of ${rest.toLocaleString("en")}`;
    if (focus && batch.length) batch[0].firstChild.focus();
  }
  function entry(place) {
    const test = run.tests[place];
    const cut = test.id.lastIndexOf("::") + 2;
    const file = cut > 1 ? test.id.slice(0, cut) : "";
    const executions = test.executions ? plural(test.executions, "execution") : "";
    const faults = Object.values(test.faults).reduce((sum, count) => sum + count, 0);
    const letters = Object.values(test.letters).reduce((sum, count) => sum + count, 0);
    const facts = [
      executions, faults && plural(faults, "fault"), letters && plural(letters, "dead letter"),
      test.tries > 1 && `${test.tries} tries`, test.events && length(test.elapsed),
    ].filter(Boolean);
    const bad = ["failed", "error", "xpassed", "interrupted"].includes(test.outcome);
    const summary = node(
      "summary", {}, badge(test.outcome),
      node("span", { class: "name" }, node("span", { class: "file" }, file), test.id.slice(cut > 1 ? cut : 0),
        bad && test.says.length ? node("span", { class: "says" }, test.says[0]) : null),
      node("span", { class: "facts" }, ...facts.map(fact => node("span", {}, fact))),
    );
    const details = node("details", { class: "test", id: `t${place}` }, summary);
    whenOpened(details, () => body(place));
    // The first thing that somebody looks for; not all of them, since each is drawn.
    if (bad && place < 3) details.open = true;
    return details;
  }
  function whenOpened(details, make) {
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount === 1) details.append(make());
    });
  }
  function body(place) {
    const tries = read(`test-${place}`);
    const inside = node("div", { class: "body" });
    tries.slice().reverse().forEach((one, before) => {
      if (before === 0) {
        if (tries.length > 1) inside.append(node("h4", {}, `Try ${tries.length}, which counts: ${one.outcome}`));
        inside.append(...attempt(one));
      } else {
        const number = tries.length - before;
        const details = node("details", { class: "inner" }, node("summary", {}, `Try ${number}: ${one.outcome}`));
        whenOpened(details, () => node("div", {}, ...attempt(one)));
        inside.append(details);
      }
    });
    return inside;
  }
  function attempt(one) {
    const parts = [];
    for (const [when, outcome, text] of one.phases) {
      if (!text) continue;
      const where = when && when !== "call" ? ` in ${when}` : "";
      parts.push(node("pre", { tabindex: 0, role: "region", "aria-label": `What pytest says: ${outcome}${where}` }, text));
    }
    const record = one.record;
    if (!record) {
      parts.push(node("p", { class: "quiet" }, "Nothing is known of its tasks."));
      return parts;
    }
    if (!record.events.length) {
      parts.push(node("p", { class: "quiet" }, "It sent no task."));
      return parts;
    }
    if (record.tasks.length) parts.push(chart(record));
    const [events, tasks] = record.omitted;
    if (events || tasks) {
      parts.push(node("p", { class: "quiet" }, `Too long for a page: ${plural(events, "event")} and ${plural(tasks, "task")} are left out.`));
    }
    parts.push(
      folded(`Tasks (${record.tasks.length})`, () => tasksTable(record)),
      record.dead.length ? folded(`Dead letters (${record.dead.length})`, () => lettersTable(record)) : null,
      folded(`Events (${record.events.length})`, () => eventsTable(record)),
    );
    return parts.filter(Boolean);
  }
  function folded(title, make) {
    const details = node("details", { class: "inner" }, node("summary", {}, title));
    whenOpened(details, make);
    return details;
  }

  // -- tables

  const ROWS = 500;
  function table(caption, heads, rows) {
    const content = node("tbody");
    const scroll = node(
      "div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
      node("table", {}, node("caption", { class: "unseen" }, caption),
        node("thead", {}, node("tr", {}, ...heads.map(([head, kind]) => node("th", { scope: "col", class: kind }, head)))), content),
    );
    let done = 0;
    const more = node("button", { type: "button" });
    const add = () => {
      for (const row of rows.slice(done, done + ROWS)) {
        content.append(node("tr", {}, ...row.map((cell, place) => node("td", { class: heads[place][1] }, cell))));
      }
      done += ROWS;
      more.hidden = done >= rows.length;
      more.textContent = `Show more, of ${plural(rows.length, "row")}`;
    };
    more.addEventListener("click", add);
    add();
    return node("div", {}, scroll, more);
  }
  const labelOf = (record, row) => (row >= 0 && record.tasks[row] ? record.tasks[row].label : "");
  function tasksTable(record) {
    return table(
      "Tasks of this test",
      [["Task", "fixed"], ["Arguments", "code"], ["Sent by", "fixed"], ["Queue", ""], ["Attempts", "number"], ["State", "fixed"]],
      record.tasks.map(task => [
        task.label, task.call, labelOf(record, task.parent) || "the test", task.queue, String(task.attempts.length), task.state,
      ]),
    );
  }
  function lettersTable(record) {
    return table(
      "Dead letters of this test",
      [["At", "number"], ["Task", "fixed"], ["Arguments", "code"], ["Reason", "fixed"], ["Exception", "code"], ["Queue", ""], ["Kept by", "fixed"]],
      record.dead.map(([at, row, reason, route, queue, exception, call]) => [
        exact(at), labelOf(record, row) || "no task", call, reason, exception, queue,
        { app: "the application", broker: "RabbitMQ, lost on Redis", harness: "nobody" }[route] || route,
      ]),
    );
  }
  function eventsTable(record) {
    return table(
      "Events of this test, in order",
      [["At", "number"], ["Event", "fixed"], ["Task", "fixed"], ["Attempt", "number"], ["Detail", "code"]],
      record.events.map(([at, kind, row, number, detail]) => [
        exact(at), run.kinds[kind], labelOf(record, row), number ? String(number) : "", detail,
      ]),
    );
  }

  // -- the chart: a row for each task, virtual time from left to right

  // Events of one instant stand side by side in their order; a wait takes room by its length, up to a limit.
  const WEIGHTS = {
    "sent": 1, "received": 0.5, "started": 1, "succeeded": 1, "failed": 1, "retried": 1, "rejected": 1, "revoked": 1.5, "acked": 0.5,
    "requeued": 1, "redelivered": 1.5, "fault fired": 2, "time jumped": 0, "dead-lettered": 1.5, "soft time limit": 1.5, "killed": 1.5,
    "worker": 0.5,
  };
  const LONGEST = 230, SHORTEST = 16, USUAL = 56;

  function places(record, room) {
    const { events } = record;
    const spans = [];
    let weight = 2;
    events.forEach(([at, kind], index) => {
      const span = index ? at - events[index - 1][0] : at;
      if (span > 0) spans.push(span);
      weight += WEIGHTS[run.kinds[kind]];
    });
    spans.sort((one, other) => one - other);
    const sum = values => values.reduce((before, value) => before + value, 0);
    // True to scale where there is room for that; or else by the shorter waits, and no longer than that.
    const isTrue = (SHORTEST * sum(spans)) / spans[0] + 5 * weight <= room;
    const unit = isTrue ? SHORTEST / spans[0] : USUAL / spans[spans.length >> 2];
    const wish = span => (isTrue ? unit * span : Math.min(LONGEST, Math.max(SHORTEST, unit * span)));
    const wishes = sum(spans.map(wish)), longest = spans.length ? wish(spans[spans.length - 1]) : 1;
    // With less room the steps within an instant give way first, then the waits; then it scrolls.
    const step = Math.max(weight > 400 ? 2 : 5, Math.min(spans.length ? 9 : 22, (room - wishes) / weight));
    const widest = Math.max(1, (2 * LONGEST) / longest);
    const stretch = wishes ? Math.max(0.35, Math.min(widest, (room - weight * step) / wishes)) : 1;
    const x = [], gaps = [];
    let position = step, before = 0;
    events.forEach(([at, kind], index) => {
      if (at > before) {
        const wide = wish(at - before) * stretch;
        gaps.push({ from: position, to: position + wide, span: at - before, cut: !isTrue && unit * (at - before) > LONGEST });
        position += wide;
        before = at;
      }
      x[index] = position;
      position += WEIGHTS[run.kinds[kind]] * step;
    });
    return { x, gaps, wide: Math.max(room, position + step) };
  }

  const MARKS = {
    "fault fired": ["fault", "fault", "M2,-7 L-4,1 L-0.5,1 L-2,7 L4,-1 L0.5,-1 Z"],
    "soft time limit": ["limit", "soft time limit", "M-4.5,-6 H4.5 L-4.5,6 H4.5 Z"],
    "killed": ["end", "killed, by a hard time limit or a crash", "M-5,-5 H5 V5 H-5 Z M-5,-5 L5,5 M5,-5 L-5,5"],
    "revoked": ["end", "revoked", "M0,-5.5 A5.5,5.5 0 1 0 0.01,-5.5 M-3.8,3.8 L3.8,-3.8"],
    "acked": ["ack", "acknowledged", "M-3.5,0 L-1,3 L4,-3.5"],
    "dead-lettered": ["letter", "dead letter", "M-6.5,-4.5 H6.5 V4.5 H-6.5 Z M-6.5,-4.5 L0,1 L6.5,-4.5"],
    "rejected": ["ack", "rejected", "M-3.5,-3.5 L3.5,3.5 M3.5,-3.5 L-3.5,3.5"],
    "requeued": ["again", "requeued", "M4,-2.5 A4.5,4.5 0 1 0 4.5,1 M4.5,-6 V-2 H0.5"],
    "redelivered": ["again", "delivered again", "M4,-2.5 A4.5,4.5 0 1 0 4.5,1 M4.5,-6 V-2 H0.5"],
  };
  const ABOVE = new Set(["fault fired", "soft time limit", "killed", "revoked"]);
  const BELOW = new Set(["acked", "rejected", "requeued", "redelivered"]);
  const FIRST_ROWS = 150, AXIS = 38;
  let charts = 0;

  function chart(record) {
    const frame = node("figure", { class: "chart" });
    frame.style.marginInline = "0";
    const number = charts++;
    let rows = Math.min(record.tasks.length, FIRST_ROWS), last = 0;
    const draw = () => {
      const wide = Math.floor(frame.getBoundingClientRect().width);
      if (!wide || (wide === last && frame.dataset.rows === String(rows))) return;
      last = wide;
      frame.dataset.rows = rows;
      frame.replaceChildren(...drawChart(record, rows, wide - 2, number));
      if (rows < record.tasks.length) {
        const more = node("button", { type: "button" }, `Show all ${plural(record.tasks.length, "task")}`);
        more.addEventListener("click", () => { rows = record.tasks.length; draw(); });
        frame.append(more);
      }
    };
    new ResizeObserver(draw).observe(frame);
    return node("div", {}, frame, legend(record));
  }

  function drawChart(record, rows, wide, number) {
    const narrow = wide < 620;
    const side = narrow ? 0 : Math.min(0.3 * wide, 40 + 7 * Math.max(...record.tasks.slice(0, rows).map(task => task.label.length)));
    const high = narrow ? 60 : 40;
    const { x, gaps, wide: drawnWide } = places(record, wide - side - 8);
    const { events, tasks } = record;
    const height = AXIS + rows * high;
    const middle = row => AXIS + row * high + (narrow ? 41 : high / 2);
    const pattern = `hatch-${number}`;
    const svg = drawn("svg", { width: drawnWide, height, role: "group", "aria-label": "Tasks on virtual time. The table of events below has the same." });
    svg.style.left = `${side}px`;
    const paper = drawn("g"), lines = drawn("g"), items = drawn("g");
    svg.append(
      drawn("defs", {}, drawn("marker", { id: `${pattern}-tip`, viewBox: "0 0 6 6", refX: 5, refY: 3, markerWidth: 6, markerHeight: 6, orient: "auto" },
        drawn("path", { d: "M0,0 L6,3 L0,6 Z", class: "tip" }))),
      paper, lines, items,
    );

    // the axis
    for (const gap of gaps.filter(one => one.cut)) {
      const at = (gap.from + gap.to) / 2;
      paper.append(drawn("rect", { class: "gap", x: gap.from, y: AXIS - 16, width: gap.to - gap.from, height: height - AXIS + 16 }));
      for (const shift of [-3, 2]) {
        paper.append(drawn("path", { class: "break", d: `M${at + shift},${AXIS - 14} l3,4 l-3,4 l3,4` }));
      }
      const text = `${length(gap.span)} long`;
      const fits = gap.to - gap.from > text.length * 6 ? text : length(gap.span);
      paper.append(drawn("text", { x: at, y: AXIS - 18, "text-anchor": "middle" }, fits));
    }
    let free = -Infinity;
    events.forEach(([at], index) => {
      if (index && at === events[index - 1][0]) return;
      paper.append(drawn("line", { class: "tick", x1: x[index], x2: x[index], y1: AXIS - 6, y2: height }));
      const text = moment(at);
      if (x[index] - 2 < free) return;
      const long = text.length * 6.4;
      paper.append(drawn("text", { x: Math.min(x[index], drawnWide - long), y: 12 }, text));
      free = x[index] + long + 8;
    });

    const things = [];
    function item(index, row, said, attributes, ...shapes) {
      const element = drawn("g", { class: "item", role: "img", "aria-label": said, tabindex: -1, ...attributes }, ...shapes);
      things.push([x[index] ?? 0, row, element, said]);
      items.append(element);
    }

    // who sent whom
    tasks.slice(0, rows).forEach((task, row) => {
      if (task.parent < 0 || task.parent >= rows || task.sent < 0) return;
      const at = x[task.sent], down = row > task.parent ? 1 : -1;
      lines.append(drawn("path", {
        class: "link", d: `M${at},${middle(task.parent) + 7 * down} V${middle(row) - 9 * down}`, "marker-end": `url(#${pattern}-tip)`,
        "data-parent": tasks[task.parent].label, "data-child": task.label,
      }));
    });

    // attempts, and the waits before them
    const end = x[events.length - 1] + 6;
    const placeOf = (index, at) => {
      if (index >= 0) return x[index];
      const later = events.findIndex(event => event[0] >= at);
      return later < 0 ? end : x[later];
    };
    tasks.slice(0, rows).forEach((task, row) => {
      const y = middle(row);
      let from = task.sent >= 0 ? x[task.sent] : null;
      for (const [count, began, ended, start, stop, state, exception, delay, again] of task.attempts) {
        const left = placeOf(start, began);
        const right = Math.max(left + 6, ended === null ? end : placeOf(stop, ended));
        if (from !== null && left - from > 3) lines.append(drawn("line", { class: "wait", x1: from, x2: left, y1: y, y2: y }));
        from = right;
        const how = ended === null ? `from ${exact(began)}, still running` : `from ${exact(began)} to ${exact(ended)}`;
        const said = [
          `${task.label} attempt ${count}, ${how}`, again && "delivered again", state, exception, delay !== null && `retry asked for in ${length(delay)}`,
        ].filter(Boolean).join(", ");
        const shapes = [
          drawn("rect", { class: "hit", x: left - 2, y: y - 11, width: right - left + 4, height: 22, rx: 4 }),
          drawn("rect", { class: `bar is-${state}`, x: left, y: y - 6, width: right - left, height: 12, rx: 3 }),
        ];
        if (state === "FAILURE") {
          const at = Math.max(left + 3, right - 6);
          shapes.push(drawn("path", { class: "cross", d: `M${at - 2.2},${y - 2.5} l5,5 m0,-5 l-5,5` }));
        }
        item(start >= 0 ? start : 0, row, said, {
          "data-kind": "attempt", "data-task": task.label, "data-attempt": count, "data-start": began, "data-end": ended,
        }, ...shapes);
      }
    });

    // what happened to them
    events.forEach(([at, kind, row, count, detail], index) => {
      const name = run.kinds[kind], mark = MARKS[name];
      if (!mark || row < 0 || row >= rows) return;
      const y = middle(row) + (ABOVE.has(name) ? -13 : BELOW.has(name) ? 12 : 0);
      const left = x[index] + (name === "dead-lettered" ? 9 : 0);
      const said = [`${tasks[row].label}${count ? ` attempt ${count}` : ""}`, `${name} at ${exact(at)}`, detail].filter(Boolean).join(", ");
      item(index, row, said, { "data-kind": name, "data-task": tasks[row].label, "data-at": at },
        drawn("rect", { class: "hit", x: left - 8, y: y - 8, width: 16, height: 16, rx: 4 }),
        drawn("path", { class: `mark ${mark[0]}`, d: mark[2], transform: `translate(${left},${y}) scale(0.9)` }));
    });

    // reading it
    const info = node("p", { class: "info quiet", "aria-live": "polite" }, "Point at a bar or a mark to read about it, or go through them with the arrow keys.");
    things.sort((one, other) => one[1] - other[1] || one[0] - other[0]);
    const say = text => { info.textContent = text; info.classList.remove("quiet"); };
    things.forEach(([, , element, said]) => {
      element.addEventListener("mouseenter", () => say(said));
      element.addEventListener("focus", () => say(said));
      element.addEventListener("click", () => go(element));
    });
    let now = 0;
    const go = element => {
      things[now]?.[2].setAttribute("tabindex", -1);
      now = things.findIndex(thing => thing[2] === element);
      element.setAttribute("tabindex", 0);
      element.focus();
    };
    things[0]?.[2].setAttribute("tabindex", 0);
    svg.addEventListener("keydown", event => {
      const [place, row] = things[now] || [];
      let next = -1;
      if (event.key === "ArrowRight") next = now + 1;
      else if (event.key === "ArrowLeft") next = now - 1;
      else if (event.key === "Home") next = 0;
      else if (event.key === "End") next = things.length - 1;
      else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        const to = row + (event.key === "ArrowDown" ? 1 : -1);
        let nearest = Infinity;
        things.forEach(([where, its], index) => {
          if (its === to && Math.abs(where - place) < nearest) { nearest = Math.abs(where - place); next = index; }
        });
      } else return;
      event.preventDefault();
      if (things[next]) go(things[next][2]);
    });

    const canvas = node("div", { class: narrow ? "canvas narrow" : "canvas" });
    canvas.style.width = `${side + drawnWide}px`;
    canvas.style.height = `${height}px`;
    canvas.style.paddingTop = `${AXIS}px`;
    tasks.slice(0, rows).forEach(task => {
      const label = node("span", { class: "label", title: task.label }, task.label);
      if (!narrow) { label.style.width = `${side}px`; label.style.lineHeight = `${high - 1}px`; }
      const line = node("div", { class: "row" }, label);
      line.style.height = `${high}px`;
      canvas.append(line);
    });
    canvas.append(svg);
    return [node("div", { class: "scroll" }, canvas), info];
  }

  function legend(record) {
    const kinds = new Set(record.events.map(event => run.kinds[event[1]]));
    const states = new Set(record.tasks.flatMap(task => task.attempts.map(one => one[5])));
    const picture = (...shapes) => {
      const small = drawn("svg", { width: 22, height: 16, viewBox: "-11 -8 22 16", "aria-hidden": "true" }, ...shapes);
      return small;
    };
    const entries = [];
    for (const [state, said] of [["SUCCESS", "succeeded"], ["FAILURE", "failed"], ["RETRY", "to be retried"]]) {
      if (!states.has(state)) continue;
      const bar = drawn("rect", { class: `bar is-${state}`, x: -9, y: -6, width: 18, height: 12, rx: 3 });
      entries.push([said, picture(bar, state === "FAILURE" ? drawn("path", { class: "cross", d: "M1,-2.5 l5,5 m0,-5 l-5,5" }) : null)]);
    }
    entries.push(["waits", picture(drawn("line", { class: "wait", x1: -10, x2: 10, y1: 0, y2: 0 }))]);
    if (record.tasks.some(task => task.parent >= 0)) {
      entries.push(["sent by the task at the other end", picture(drawn("path", { class: "link", d: "M0,-7 V4" }), drawn("path", { class: "tip", d: "M-3,2 L0,8 L3,2 Z" }))]);
    }
    for (const [kind, [tone, said, shape]] of Object.entries(MARKS)) {
      if (kinds.has(kind)) entries.push([said, picture(drawn("path", { class: `mark ${tone}`, d: shape }))]);
    }
    const list = node("ul", { class: "legend chart-legend" }, ...entries.map(([said, shape]) => node("li", {}, shape, said)));
    const shortened = places(record, 700).gaps.some(gap => gap.cut);
    list.append(node("li", {}, `What happens at one instant stands side by side, in its order.${
      shortened ? " A shaded stretch is shortened, and says how long it is." : ""}`));
    return list;
  }

  // -- light and dark

  function showTheme() {
    const choice = byId("theme");
    const apply = () => {
      if (choice.value) document.documentElement.dataset.theme = choice.value;
      else delete document.documentElement.dataset.theme;
    };
    // Some browsers keep nothing for a page of a file, and say so by an error.
    try { choice.value = localStorage.getItem("celery-faults-theme") || ""; } catch { /* the system's, then */ }
    choice.addEventListener("change", () => {
      apply();
      try { localStorage.setItem("celery-faults-theme", choice.value); } catch { /* for this time only */ }
    });
    apply();
  }

  function follow() {
    const place = Number(/^#t(\d+)$/.exec(location.hash)?.[1] ?? -1);
    if (!run.tests[place]) return;
    if (!byId(`t${place}`)) {
      if (!chosen.includes(place)) clear();
      while (!byId(`t${place}`)) showMore(false);
    }
    const details = byId(`t${place}`);
    details.open = true;
    details.firstChild.focus({ preventScroll: true });
    details.scrollIntoView();
  }

  showTheme();
  showOverview();
  showFilter();
  choose();
  follow();
  addEventListener("hashchange", follow);
})();
