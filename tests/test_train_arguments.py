import pytest

from jobs.train import parse


@pytest.mark.parametrize(
    ("words", "resume", "overrides"),
    [
        ([], None, []),
        (["a.b=1"], None, ["a.b=1"]),
        (["--resume"], "", []),
        (["--resume", "0123"], "0123", []),
        (["--resume", "a.b=1"], "", ["a.b=1"]),
        (["a.b=1", "--resume", "c.d=2", "e.f=3"], "", ["c.d=2", "a.b=1", "e.f=3"]),
        (["--resume", "0123", "a.b=1"], "0123", ["a.b=1"]),
    ],
)
def test_settings_may_follow_resume(words, resume, overrides) -> None:
    args = parse(["--config", "x.yaml", *words])
    assert args.resume == resume
    assert sorted(args.overrides) == sorted(overrides)
