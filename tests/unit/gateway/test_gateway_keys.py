"""A key from the command line opens what its line names; prompts are logged only where that is switched on."""

import os

import pytest
import yaml

from tuneloop_gateway.accesslog import AccessLog
from tuneloop_gateway.auth import digest_of_hash, digest_of_header
from tuneloop_gateway.keys import main, new_key


def test_the_printed_line_opens_to_the_printed_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "--name", "app-7"]) == 0
    key, line = capsys.readouterr().out.splitlines()
    (entry,) = yaml.safe_load(line)
    assert entry.keys() == {"name", "hash"}
    assert entry["name"] == "app-7"
    assert digest_of_hash(entry["hash"]) == digest_of_header(b"Bearer " + key.encode())
    assert key not in line


def test_keys_are_256_random_bits() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("tl-") and len(key) == 46 for key in keys)


@pytest.mark.parametrize("name", ["App", "", "-a", "a" * 64, "a b"])
def test_a_bad_name_is_refused_in_words(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["new", f"--name={name}"])
    assert caught.value.code == 2
    assert "lower-case letters, digits and '-'" in capsys.readouterr().err


@pytest.mark.parametrize(("prompts", "found"), [(False, False), (True, True)])
def test_prompts_are_logged_only_if_asked_for(prompts: bool, found: bool) -> None:
    read, written = os.pipe()
    log = AccessLog(prompts=prompts, descriptor=written)
    log.write({"status": 200}, {"prompt": "my secret", "model": "qa"})
    log.flush()
    assert (b"my secret" in os.read(read, 4096)) is found


def test_switched_off_it_writes_nothing() -> None:
    read, written = os.pipe()
    log = AccessLog(enabled=False, descriptor=written)
    log.write({"status": 200})
    log.flush()
    os.set_blocking(read, False)
    with pytest.raises(BlockingIOError):
        os.read(read, 10)
