from __future__ import annotations

import io
import logging

from fedsr_monai.progress import Progress, doing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_one_line_per_item(caplog):
    caplog.set_level(logging.INFO, "fedsr_monai.progress")
    bar = Progress("abc", desc="segment", unit="scan", file=io.StringIO())
    for item in bar:
        bar.set_postfix_str(f"is {item}", refresh=False)
    assert len(caplog.messages) == 3
    assert caplog.messages[0].startswith("segment: scan 1 of 3, about ") and caplog.messages[0].endswith(" left: is a")
    assert caplog.messages[2] == "segment: scan 3 of 3: is c"


def test_a_log_counts_on_from_what_was_finished(caplog):
    caplog.set_level(logging.INFO, "fedsr_monai.progress")
    with Progress(total=6, initial=4, desc="fedsr", unit="site", file=io.StringIO()) as bar:
        bar.update()
        bar.update()
    assert [message.split(",")[0] for message in caplog.messages] == ["fedsr: site 5 of 6", "fedsr: site 6 of 6"]


def test_a_log_says_that_long_work_begins(caplog):
    caplog.set_level(logging.INFO, "fedsr_monai.progress")
    for total, initial in ((6, 4), (2, 2), (0, 0)):  # nothing is left of the last two
        Progress(total=total, initial=initial, desc="prepare", unit="scan", announce=True, file=io.StringIO()).close()
    assert caplog.messages == ["prepare: scan 5 of 6 begins"]


def test_a_bar_says_what_is_being_done(caplog):
    caplog.set_level(logging.INFO, "fedsr_monai.progress")
    terminal = Terminal()
    with Progress(total=2, desc="segment", unit="scan", file=terminal):
        doing("finding the brain")
    shown = terminal.getvalue()
    doing("nothing, without a bar")
    assert "finding the brain" in shown and terminal.getvalue() == shown and caplog.messages == []


def test_a_terminal_gets_a_bar_at_once_and_no_lines(caplog):
    caplog.set_level(logging.INFO, "fedsr_monai.progress")
    terminal = Terminal()
    with Progress(total=2, desc="fedsr", unit="site", file=terminal) as bar:
        assert "0/2" in terminal.getvalue()
        bar.update(2)
    assert "2/2" in terminal.getvalue() and caplog.messages == []


def test_quiet_is_quiet(caplog):
    caplog.set_level(logging.INFO, "fedsr_monai.progress")
    terminal = Terminal()
    assert list(Progress([1, 2], quiet=True, file=terminal)) == [1, 2]
    assert terminal.getvalue() == "" and caplog.messages == []
