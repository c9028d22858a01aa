"""``pyright --verifytypes``, which has no exceptions, with the few that untyped Celery makes necessary."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

PACKAGE = "pytest_celery_faults"

# Celery has no types, so what is derived from its classes has a base that is unknown to a type checker. None of them is
# exported by the package itself.
DERIVED_FROM_CELERY = {
    "backend.Backend",
    "backend.Drainer",
    "backend.ResultConsumer",
    "pool.Pool",
    "worker.Worker",
}

EXPLAINED = {f"{PACKAGE}.{name}" for name in DERIVED_FROM_CELERY}


def main() -> str | None:
    # Without --ignoreexternal, each mention of Celery, in whatever place, would count.
    command = [sys.executable, "-m", "pyright", "--verifytypes", PACKAGE, "--ignoreexternal", "--outputjson"]
    report: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout)
    symbols: list[dict[str, Any]] = report["typeCompleteness"]["symbols"]
    if not symbols:
        return f"pyright found no types to verify: {report['generalDiagnostics']}"
    incomplete: dict[str, list[str]] = {}
    for symbol in symbols:
        if symbol["isTypeAmbiguous"] or not symbol["isTypeKnown"]:
            # A class with an incomplete method is incomplete too, but it is for the method that something is reported.
            found: list[str] = [each["message"] for each in symbol["diagnostics"]]
            if found := [message for message in found if not message.startswith("No docstring")]:
                incomplete[symbol["name"]] = found
    print(f"{len(symbols)} public names, {len(incomplete)} with types that are incomplete, {len(EXPLAINED)} expected")
    wrong = [f"{name}: {'; '.join(found)}" for name, found in incomplete.items() if name not in EXPLAINED]
    wrong += [f"{name}: is complete, and needs no exception" for name in sorted(EXPLAINED - {*incomplete})]
    return "\n".join(wrong) or None


if __name__ == "__main__":
    sys.exit(main())
