"""What reaches the person at the keyboard."""

import errno
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from sd.utils.errors import NO_MEMORY, NO_READER, STOPPED, SettingError, UserError, name_settings, plain_errors

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_one_sentence(error, capsys):
    @plain_errors
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err == f"error: {NO_MEMORY}\n"


def test_the_error_of_a_setting_names_the_flag_in_a_script(capsys):
    error = SettingError("lr", "must be above 0, not -1.0")
    assert str(error) == "lr must be above 0, not -1.0."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(error.renamed({"steps": "--steps"})) == str(error)

    @plain_errors
    def main() -> None:
        name_settings({"lr": "--lr"})
        raise error

    with pytest.raises(SystemExit) as left:
        main()
    assert (left.value.code, capsys.readouterr().err) == (2, "error: --lr must be above 0, not -1.0.\n")
    name_settings({})


def test_a_mistake_of_ours_keeps_its_traceback():
    @plain_errors
    def main() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        main()


def program(tmp_path, body: str) -> list[str]:
    """The command of a script with this `main`."""
    path = tmp_path / "script.py"
    lines = ["import os, sys, time", f"sys.path.insert(0, {str(ROOT)!r})", "from sd.utils.errors import plain_errors"]
    lines += ["@plain_errors", "def main():", textwrap.indent(textwrap.dedent(body), "    "), "main()"]
    path.write_text("\n".join(lines))
    return [sys.executable, str(path)]


@pytest.mark.parametrize("end", ["", "2>&1"], ids=["stdout", "both"])
@pytest.mark.parametrize(
    "body",
    [
        "for i in range(100_000): print(i)",
        "for i in range(100_000): print(i, flush=True)",
        "print(1, flush=True); time.sleep(0.5); print(2)",
        "print(1, flush=True); time.sleep(0.5); print(2); sys.exit(3)",
        "print(1, flush=True); time.sleep(0.5); raise BrokenPipeError(32, 'Broken pipe')",
    ],
)
def test_head_closes_the_pipe_and_nothing_is_said(tmp_path, body, end):
    command = f"{shlex.join(program(tmp_path, body))} {end} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.returncode == NO_READER


def test_help_into_a_pipe_that_is_closed(tmp_path):
    body = """
        import argparse
        parser = argparse.ArgumentParser(description="x " * 100_000)
        parser.parse_args(["--help"])
    """
    command = f"{shlex.join(program(tmp_path, body))} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.startswith("usage")


def test_a_print_while_a_file_is_written_is_no_fault_of_the_disk(tmp_path):
    body = """
        from pathlib import Path
        from sd.checkpoints.weight_files import replacing
        with replacing(Path("kept")) as part:
            part.write_text("half")
            print("x" * 100_000, flush=True)
    """
    command = f"{shlex.join(program(tmp_path, body))} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stderr == ""
    assert not (tmp_path / "kept").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_one_sentence(tmp_path):
    for body in ("open('/dev/full', 'w').write('x' * 100_000)", "print('x', flush=True)", "print('x')"):
        with open("/dev/full", "w") as full:
            done = subprocess.run(program(tmp_path, body), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.stderr == "error: a file cannot be read or written: No space left on device; " + (
            "make room on that disk.\n"
        )
        assert done.returncode == 2


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.EROFS, "Read-only file system", "/mnt/a.png"), "/mnt/a.png .*Read-only file system; choose"),
        (PermissionError(errno.EACCES, "Permission denied", b"/mnt/\xff"), r"Permission denied; check its permissions"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; check the path and the disk"),
        (OSError("no number"), "no number; check the path"),
        (OSError(errno.ENOMEM, "Cannot allocate memory: out of memory"), NO_MEMORY),
    ],
)
def test_what_the_system_refuses_is_one_sentence(error, sentence, capsys):
    @plain_errors
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(sentence, said), said


def test_names_that_are_not_utf_8_are_printed(tmp_path):
    name = os.fsdecode(b"photo-\xff.png")
    body = f"print({name!r}, '\\ud83d'); raise OSError(2, 'No such file', {name!r})"
    for encoding in ("utf-8", "ascii"):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run(program(tmp_path, body), capture_output=True, text=True, timeout=60, env=environment)
        assert done.stdout == "photo-\\udcff.png \\ud83d\n"
        assert done.stderr.startswith("error: photo-\\udcff.png cannot be read")
        assert done.returncode == 2


def test_without_any_output(tmp_path):
    done = subprocess.run(["bash", "-c", f"{shlex.join(program(tmp_path, 'print(1)'))} >&-"], timeout=60)
    assert done.returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_ctrl_c_stops_and_a_second_one_leaves_at_once(tmp_path):
    body = """
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("finishing", flush=True)
            time.sleep({seconds})
    """
    for seconds, presses, code in ((0, 1, STOPPED), (60, 2, -signal.SIGINT)):
        command = program(tmp_path, textwrap.dedent(body).format(seconds=seconds))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            for _ in range(presses):
                assert process.stdout.readline()
                process.send_signal(signal.SIGINT)
            assert process.wait(20) == code
            assert process.stderr.read() == ("stopped.\n" if presses == 1 else "")


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_second_ctrl_c_while_python_ends_is_quiet_too(tmp_path):
    body = """
        import atexit
        atexit.register(lambda: (print("ending", flush=True), time.sleep(60)))
        print("ready", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        program(tmp_path, body), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for _ in range(2):
            assert process.stdout.readline()
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
        assert process.stderr.read() == "stopped.\n"


def test_the_interrupt_of_whoever_called_is_left_as_it_was(capsys):
    before = signal.getsignal(signal.SIGINT)

    @plain_errors
    def main(error) -> None:
        if error:
            raise error

    main(None)
    for error in (UserError("x."), KeyboardInterrupt()):
        with pytest.raises(SystemExit):
            main(error)
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err == "error: x.\nstopped.\n"


def test_a_message_obeys_no_control_characters_of_a_file_s_names_and_is_no_page():
    assert str(UserError("no model named \x1b[2Ja\r\nb\u2028c\x9b: é \U0001f34e.")) == (
        "no model named \\x1b[2Ja\\r\\nb\\u2028c\\x9b: é \U0001f34e."
    )
    long = str(UserError(f"unknown name {'a' * 100_000}: choose another one."))
    assert len(long) < 2000
    assert long.startswith("unknown name aaa")
    assert long.endswith("aaa: choose another one.")
