"""`autoretry_for` by base class and by option: which delays, how many, and what the result is in the end."""

from pathlib import Path

import pytest

from worker.celery_tasks import archive, total, total_of_branch, total_of_year

EXAMPLES = Path(__file__).parents[1]

DOUBLED_UP_TO_THE_CAP = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 700, 700]


@pytest.mark.inject(TypeError("the price is None"), task=total, times=None)
def test_the_base_class_retries_after_1_2_4_8_16_s_and_then_fails(celery_faults, retry_recorder):
    result = total.delay([10, 20])

    with pytest.raises(TypeError, match="the price is None"):
        result.get()
    assert retry_recorder.delays == [1, 2, 4, 8, 16]
    assert retry_recorder.waits == [1, 2, 4, 8, 16]
    assert retry_recorder.policy == [1, 2, 4, 8, 16]
    assert retry_recorder.exhausted
    assert result.state == "FAILURE"
    assert celery_faults.clock.elapsed == 1 + 2 + 4 + 8 + 16


@pytest.mark.inject(TypeError("the price is None"), task=total, times=5)
def test_the_fifth_retry_may_still_succeed(retry_recorder):
    assert total.delay([10, 20]).get() == 30
    assert retry_recorder.delays == [1, 2, 4, 8, 16]
    assert not retry_recorder.exhausted


@pytest.mark.inject(ValueError("not a price"), task=total)
def test_only_a_type_error_is_retried(retry_recorder):
    with pytest.raises(ValueError, match="not a price"):
        total.delay([10, 20]).get()
    assert retry_recorder.count == 0


@pytest.mark.inject(TypeError, task=total_of_year, times=None)
def test_with_more_retries_the_delay_is_never_above_700_s(celery_faults, retry_recorder):
    with pytest.raises(TypeError):
        total_of_year.delay([10, 20]).get()

    assert retry_recorder.delays == DOUBLED_UP_TO_THE_CAP
    retry_recorder.assert_follows_policy()
    assert celery_faults.clock.elapsed == sum(DOUBLED_UP_TO_THE_CAP)


@pytest.mark.inject(TypeError, task=total_of_branch, times=None)
def test_with_jitter_each_delay_is_between_0_and_what_it_would_be_without(retry_recorder):
    with pytest.raises(TypeError):
        total_of_branch.delay([10, 20]).get()

    assert retry_recorder.count == len(DOUBLED_UP_TO_THE_CAP)
    assert retry_recorder.policy == [(0, bound) for bound in DOUBLED_UP_TO_THE_CAP]
    retry_recorder.assert_follows_policy()
    for delay, bound in zip(retry_recorder.delays, DOUBLED_UP_TO_THE_CAP, strict=True):
        assert 0 <= delay <= bound
    assert retry_recorder.delays != DOUBLED_UP_TO_THE_CAP
    assert retry_recorder.waits == retry_recorder.delays


def test_with_jitter_the_delays_are_the_same_for_the_same_seed(pytester):
    pytester.makepyfile(
        """
        import pytest
        from worker.celery_tasks import total_of_branch

        @pytest.mark.inject(TypeError, task=total_of_branch, times=None)
        def test_delays(retry_recorder):
            with pytest.raises(TypeError):
                total_of_branch.delay([10, 20]).get()
            print("delays:", *retry_recorder.delays)
        """
    )
    pytester.makeini(f"[pytest]\npythonpath = {EXAMPLES}\ncelery_faults_app = worker.app:app")

    def delays(seed):
        run = pytester.runpytest_subprocess("-rP", "--celery-faults", f"--celery-faults-seed={seed}")
        run.assert_outcomes(passed=1)
        [line] = [line for line in run.outlines if line.startswith("delays:")]
        return line

    first, again, other = delays(seed=1), delays(seed=1), delays(seed=2)
    assert first == again
    assert first != other


@pytest.mark.inject(OSError("the drive is gone"), task=archive, times=None)
def test_the_option_retries_three_times_10_s_apart_and_then_the_io_error_itself_is_the_result(
    celery_faults, retry_recorder
):
    result = archive.delay("report.pdf", "archive/report.pdf")
    celery_faults.worker.drain()

    assert retry_recorder.delays == [10, 10, 10]
    retry_recorder.assert_follows_policy()
    assert [attempt.started for attempt in retry_recorder.attempts] == [0, 10, 20, 30]
    assert retry_recorder.exhausted
    # Itself, not MaxRetriesExceededError, which comes only when `retry()` is called without an exception. OSError is
    # the name that Python 3 shows for IOError: they are one class.
    assert result.state == "FAILURE"
    assert type(result.result) is IOError
    assert result.result.args == ("the drive is gone",)
    with pytest.raises(IOError, match="the drive is gone"):
        result.get()


@pytest.mark.inject(OSError("the drive is gone"), task=archive, times=3)
def test_a_drive_that_comes_back_gets_its_file(celery_faults, retry_recorder, tmp_path):
    report, archived = tmp_path / "report.pdf", tmp_path / "archived.pdf"
    report.write_text("a report")

    assert archive.delay(str(report), str(archived)).get() == str(archived)
    assert archived.read_text() == "a report"
    assert retry_recorder.delays == [10, 10, 10]
    assert celery_faults.clock.elapsed == 30


# With another default queue, only the route can bring the messages to "celery".
@pytest.mark.celery_faults(conf={"task_default_queue": "orders"})
@pytest.mark.inject(IOError, task=archive, times=3)
def test_the_message_and_its_retries_go_to_the_queue_celery(celery_faults, tmp_path):
    (tmp_path / "report.pdf").write_text("a report")

    archive.delay(str(tmp_path / "report.pdf"), str(tmp_path / "archived.pdf")).get()

    assert [message.queue for message in celery_faults.sent.of(archive)] == ["celery"] * 4
