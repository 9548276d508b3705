"""TOML and options beyond what anybody means are refused by name, at once: nothing recurses, overflows or hangs."""

import os
import time
from pathlib import Path

import pytest
from cistron.trainer.config import JobConfig, load_config
from cistron.trainer.errors import ConfigError


def refused(*argv: str) -> str:
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load_config(argv)
    assert time.monotonic() - began < 10
    assert len(str(caught.value)) < 40_000
    return str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "limit"),
    [
        ("training.seq_len", "1000000000000", "16777216"),
        ("training.seq_len", "100000000", "16777216"),
        ("training.global_batch_size", "800000000000", "16777216"),
        ("training.local_batch_size", "800000000000", "1048576"),
        ("training.steps", "1000000000001", "1000000000"),
        ("training.seed", str(2**63), "9223372036854775808"),
        ("optimizer.lr", "1e30", "1000"),
        ("optimizer.weight_decay", "1e9", "100"),
        ("comm.timeout_seconds", "1000000000000000", "604800"),
        ("data.lanes", "1000000000", "65536"),
        ("data.num_workers", "1000000", "1024"),
        ("data.retries", "1000", "16"),
        ("data.cache_gb", "1e300", "1000000000"),
        ("model.n_layers", "10000000", "1024"),
        ("model.dim", "10000000000", "1048576"),
        ("model.vocab_size", str(2**32), "less than or equal to 16777216"),
        ("model.rope.theta", "1e300", "1000000000000000"),
        ("parallelism.tensor_parallel_degree", str(10**12), "1048576"),
        ("fine_tuning.lora.rank", str(10**12), "65536"),
        ("eval.extrapolation.passkey.digits", str(10**12), "1000"),
    ],
)
def test_a_number_beyond_its_limit_is_refused_with_the_limit(option: str, value: str, limit: str) -> None:
    said = refused("debug", f"--{option}", value)
    assert option in said
    assert limit in said


def test_a_number_has_a_limit_wherever_it_stands() -> None:
    """No table takes 10^40, which no step after it could use."""
    schema = JobConfig.model_json_schema()
    unlimited = []

    def look(place: str, node: object) -> None:
        if isinstance(node, dict):
            number = node.get("type") in ("integer", "number")
            if number and not {"maximum", "exclusiveMaximum"} & node.keys():
                unlimited.append(place)
            for key, value in node.items():
                look(f"{place}.{key}", value)
        elif isinstance(node, list):
            for value in node:
                look(place, value)

    look("", schema)
    # classes are labels, as the data writes them, and are compared as text
    assert [place for place in unlimited if "HeadConfig.properties.classes" not in place] == []


def test_lengths_of_an_evaluation_are_bounded_as_multiples_too() -> None:
    for length in ("9" * 5000 + "x", "2000x", "100000000", "0x"):
        assert "eval.extrapolation.lengths" in refused("debug", "--eval.extrapolation.lengths", length)


def test_a_chain_of_files_has_an_end(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number}.toml").write_text(f'extends = "{number + 1}.toml"\n')
    assert "`extends` leads through more than 32 files" in refused(str(tmp_path / "0.toml"))


def test_extends_leads_to_files_alone_and_never_in_a_circle(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 10_000)
    (tmp_path / "other").symlink_to(tmp_path)
    for base, problem in {
        "/dev/zero": "/dev/zero: this is a device, where a file is read",
        "pipe.toml": "pipe.toml: this is a pipe",
        "loop.toml": "loop.toml: cannot be read: Too many levels of symbolic links",
        "deep.toml": "nested more than 64 deep",
        "other/job.toml": "goes in a circle",
        "n" * 5000 + ".toml": "File name too long",
        "n" * 5000: "no such file",
        "\\u0000": "no such file",
        "~nobody-is-called-so/x.toml": "No such file",
    }.items():
        (tmp_path / "job.toml").write_text(f'extends = "{base}"\n')
        assert problem in refused(str(tmp_path / "job.toml")), base


def test_words_of_the_command_line_are_bounded(tmp_path: Path) -> None:
    assert "data.sources" in refused("debug", "--data.sources", "[" * 50_000)
    assert "data.sources" in refused("debug", "--data.sources", "[" * 50_000 + "]" * 50_000)
    assert "--model.rope" in refused("debug", "--model.rope", '{"theta": ' * 100 + "1" + "}" * 100)
    assert "training.steps" in refused("debug", "--training.steps", "9" * 50_000)
    assert "no such user" in refused("debug", "--job.dump_folder", "~nobody-is-called-so/x")


def test_many_mistakes_are_counted_and_the_first_are_described(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("\n".join(f"a{number} = 1" for number in range(20_000)))
    said = refused(str(tmp_path / "job.toml"))
    assert "20000 keys or values are wrong; the first 100 of them:" in said
    assert "a99: unknown key" in said
    assert "a100:" not in said
