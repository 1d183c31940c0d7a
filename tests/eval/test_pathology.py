"""Each pathology is provoked in a real run of a tiny model and named, and nothing else is; healthy runs are called healthy."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from dunwu.cli import main
from dunwu.data.chat import Encoded
from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.eval.course import Course, read_courses
from dunwu.eval.pathology import PATHOLOGIES, Finding, Limits, examine
from dunwu.eval.report import write_report
from dunwu.eval.trends import trend
from dunwu.log import Run
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.recipes.reinforce import held_out_point, reinforce
from dunwu.rollout.engine import Engine
from dunwu.store import Store
from dunwu.train.config import GrpoConfig, SftConfig
from dunwu.train.grpo import Learner
from dunwu.train.optim import MasterAdamW
from dunwu.train.sft import sft
from dunwu.types import DunwuError, Problem, SamplingParams, Verdict

LETTERS = "abcdefgh"
CONFIG = GrpoConfig(steps=24, problems=8, group_size=8, max_tokens=12, warmup=0, schedule="constant", lr=3e-3)
Judge = Callable[[int, str], Verdict | float]


def words(count: int) -> list[tuple[str, str]]:
    """Questions and answers: any letters, about four of them, and a full stop."""
    dice = Random(0)
    lengths = (dice.choice((1, 2, 3, 4, 5, 6, 7)) for _ in range(count))
    return [(f"{dice.choice(LETTERS)}:", "".join(dice.choices(LETTERS, k=length)) + ".") for length in lengths]


class Words:
    """Asked for a word, judged by a function of the problem's number and the text."""

    name = "words"

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return Problem(self.name, f"{split}-{seed}-{index}", {"n": index}, f"{LETTERS[index % 8]}:")

    def score(self, problem: Problem, completion: str) -> Verdict:
        verdict = self.judge(problem.data["n"], completion)
        return verdict if isinstance(verdict, Verdict) else Verdict({"accuracy": verdict}, verdict)

    def gold(self, problem: Problem) -> str:
        return "a."

    def answer_key(self, problem: Problem, answer: str | None) -> str | None:
        return answer


def good(n: int, text: str) -> float:
    """Begins with one of two letters: chance is 1/4."""
    return float(text[:1] in ("a", "b"))


@pytest.fixture(scope="module")
def base() -> tuple[Transformer, Tokenizer]:
    """A model of a few thousand weights that has learned to say such words."""
    tokenizer = train_from_texts(["a:b."], 271)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=32
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    pairs = [(tokenizer.encode(asked), [*tokenizer.encode(said), tokenizer.end_id]) for asked, said in words(400)]
    examples = [Encoded((*a, *b), (0,) * len(a) + (1,) * len(b)) for a, b in pairs]
    list(sft(model, MasterAdamW(model), examples, SftConfig(epochs=12, batch_tokens=400, lr=1e-2), seed=0))
    return model, tokenizer


class Ward:
    """Runs the base into something, in a run folder of its own."""

    def __init__(self, base: tuple[Transformer, Tokenizer], home: Path) -> None:
        self.base, self.tokenizer = base
        self.home, self.dir = home, home / "run"

    def train(
        self,
        judge: Judge,
        config: GrpoConfig = CONFIG,
        dtype: torch.dtype = torch.float32,
        frozen: tuple[str, ...] = (),
        stale: bool = False,
        held_out: bool = False,
    ) -> list[Finding]:
        """The findings of a run under this reward; `stale`: the sampler never gets the new weights."""
        model = copy.deepcopy(self.base).to(dtype)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(part in name for part in frozen))
        learner = Learner(model, MasterAdamW(model, weight_decay=0.0))
        engine = Engine(copy.deepcopy(model) if stale else model, self.tokenizer, lambda: learner.optimizer.version)
        task = Words(judge)

        def on_step(n: int) -> dict[str, float]:
            params = SamplingParams(max_tokens=config.max_tokens)
            if held_out and n % 4 == 0:
                held_out_point(run, engine, self.tokenizer, task, 32, params, n)
            return {}

        with Run.open(self.dir, "grpo", {"grpo": config}, 0, Store(self.home / "store")) as run:

            def build(work: Path) -> dict[str, object]:
                state = {"step": 0}
                return reinforce(
                    run, "grpo", learner, engine, self.tokenizer, task, config, 0, work, state, 99, on_step
                )

            run.stage("grpo", build, {"grpo": config})
        return self.findings()

    def findings(self) -> list[Finding]:
        return examine(read_courses(self.dir))


@pytest.fixture
def ward(base: tuple[Transformer, Tokenizer], tmp_path: Path) -> Ward:
    return Ward(base, tmp_path)


def names(findings: list[Finding]) -> list[str]:
    for finding in findings:
        assert finding.cure and finding.what and finding.stage == "grpo"
        assert 0 <= finding.first_step <= finding.last_step
    return [finding.pathology for finding in findings]


# ---- healthy


def test_a_run_that_learns_is_healthy(ward: Ward, capsys: pytest.CaptureFixture[str]) -> None:
    assert names(ward.train(good, held_out=True)) == []
    (course,) = read_courses(ward.dir)
    line = trend(course.curve("reward"))
    assert line is not None and line.before < 0.5 and line.after > 0.9, "it did learn"
    assert main(["doctor", str(ward.dir)]) == 0
    assert "healthy (grpo)" in capsys.readouterr().out


def test_a_run_that_has_half_learned_is_healthy(ward: Ward) -> None:
    assert names(ward.train(good, replace(CONFIG, lr=4e-4, minibatches=4), held_out=True)) == []
    (course,) = read_courses(ward.dir)
    line = trend(course.curve("reward"))
    assert line is not None and line.rise > 0.1 and line.after < 0.9


def test_growing_with_the_truth_is_no_hack(ward: Ward) -> None:
    """Longer answers are the right ones here, as in R1-Zero."""
    found = ward.train(lambda n, text: float(len(text) >= 8), replace(CONFIG, lr=2e-3, max_tokens=16))
    (course,) = read_courses(ward.dir)
    length = trend(course.curve("length"))
    assert length is not None and length.after > 1.4 * length.before
    assert names(found) == []


# ---- the six


def test_entropy_collapse(ward: Ward) -> None:
    """Half a point for one first letter; the whole one, for a letter of its own and a full stop, is then never seen again."""

    def tempting(n: int, text: str) -> float:
        return 1.0 if text[:2] == f"{LETTERS[n % 8]}." else 0.5 * (text[:1] == "h")

    found = ward.train(tempting, replace(CONFIG, lr=1e-2))
    assert names(found) == ["entropy-collapse", "zero-variance-starvation"]
    assert found[0].figure["distinct"] < 0.2 < found[0].figure["distinct_before"]
    assert "one text" in found[1].what, "the second follows from the first, and says so"


def test_length_hacking(ward: Ward) -> None:
    def chatty(n: int, text: str) -> Verdict:
        return Verdict({"chatty": len(text) / 24}, len(text) / 24)

    (found,) = ward.train(chatty, replace(CONFIG, lr=2e-3, max_tokens=24))
    assert names([found]) == ["length-hacking"]
    assert found.figure["length"] > 2 * found.figure["length_before"] and found.figure["correlation"] > 0.9


def test_zero_variance_starvation(ward: Ward) -> None:
    found = ward.train(lambda n, text: float(text == "hgfedcba."))
    assert names(found) == ["zero-variance-starvation"]
    assert found[0].figure["flat_groups"] > 0.9 and (found[0].first_step, found[0].last_step) == (1, CONFIG.steps)


def test_sampler_mismatch(ward: Ward) -> None:
    """The sampler keeps the weights of the start: the commonest fault where sampler and trainer are two programs."""
    found = ward.train(good, replace(CONFIG, steps=16), stale=True)
    assert "sampler-mismatch" in names(found)
    assert set(names(found)) <= {"sampler-mismatch", "oversized-updates"}
    assert found[0].figure["mismatch_first"] < 1e-3 < found[0].figure["mismatch"]


def test_a_sampler_that_never_agreed_is_named_from_the_error(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Engine.sample

    def hotter(engine: Engine, prompts: Any, seeds: Any, params: SamplingParams) -> Any:
        return sample(engine, prompts, seeds, replace(params, temperature=1.5))

    monkeypatch.setattr(Engine, "sample", hotter)
    with pytest.raises(DunwuError, match="sampler and trainer disagree"):
        ward.train(good)
    assert names(ward.findings()) == ["sampler-mismatch"]


@pytest.mark.parametrize(
    ("error", "figure"),
    [
        ("sampler and trainer disagree by nan nats a token before the first update", None),
        ("sampler and student disagree by 0.2500 nats a token before the first update", 0.25),
        ("policy ratio is 1e-05 before the first update, not 1", 1e-5),
        ("policy ratio is inf before the first update, not 1", None),
        ("KL to the reference is 0.5 before the first update, not 0", 0.5),
    ],
)
def test_whatever_does_not_begin_as_one_is_named(error: str, figure: float | None) -> None:
    (found,) = examine([Course("r", "grpo", {}, status="failed", error=f"DunwuError: {error} (share weights)")])
    assert found.pathology == "sampler-mismatch" and error in found.what
    assert found.figure == ({} if figure is None else {"mismatch": figure})


def test_reward_hacking(ward: Ward) -> None:
    """The letter h pays; what is wanted stands beside it and does not count."""

    def liked(n: int, text: str) -> Verdict:
        pays = float(text[:1] == "h")
        return Verdict({"liked": pays, "truth/good": good(n, text)}, pays)

    found = ward.train(liked)
    assert names(found) == ["reward-hacking"]
    assert found[0].figure["proxy"] > found[0].figure["proxy_before"] + 0.1
    assert found[0].figure["truth"] < found[0].figure["truth_before"]
    assert "truth/good falls" in found[0].what


def test_reward_hacking_by_the_held_out_score(ward: Ward) -> None:
    def liked(n: int, text: str) -> Verdict:
        pays = float(text[:1] == "h")
        return Verdict({"liked": pays, "accuracy": good(n, text)}, pays)

    assert names(ward.train(liked, held_out=True)) == ["reward-hacking"]


def test_frozen_parameters(ward: Ward) -> None:
    found = ward.train(good, frozen=("embed", "layers.0"))
    assert names(found) == ["frozen-parameters"]
    assert "not trained" in found[0].what


def test_a_learning_rate_below_the_rounding_of_the_weights(ward: Ward) -> None:
    found = ward.train(good, replace(CONFIG, steps=6, lr=1e-9), dtype=torch.bfloat16)
    assert names(found) == ["frozen-parameters"]
    assert "rounding" in found[0].what
    still = Ward((ward.base, ward.tokenizer), ward.home / "still").train(good, replace(CONFIG, steps=6, lr=0.0))
    assert names(still) == ["frozen-parameters"] and "rate is 0" in still[0].what


# ---- others


def test_explosion(ward: Ward) -> None:
    with pytest.raises(DunwuError, match="at step"):
        ward.train(good, replace(CONFIG, lr=1e30, max_grad_norm=0.0, reward="random"))
    assert names(ward.findings()) == ["explosion"]


def test_oversized_updates(ward: Ward) -> None:
    found = ward.train(good, replace(CONFIG, steps=8, lr=1e-2, minibatches=4))
    assert names(found) == ["zero-variance-starvation", "oversized-updates"], (
        "after the first nothing was left to learn"
    )
    assert found[1].first_step == 1 and found[1].figure["approx_kl"] > 0.5


def test_truncation(ward: Ward) -> None:
    found = ward.train(lambda n, text: float(text.endswith(".")), replace(CONFIG, steps=6, lr=1e-5, max_tokens=4))
    assert names(found) == ["truncation"]


def test_verifier_errors(ward: Ward) -> None:
    def fails(n: int, text: str) -> Verdict | float:
        return Verdict({}, 0.0, "error", "no such file") if text[:1] == "c" else good(n, text)

    found = ward.train(fails, replace(CONFIG, steps=6, lr=4e-4))
    assert names(found) == ["verifier-errors"] and "no such file" in found[0].what


def course(**metrics: list[float]) -> Course:
    return Course("grpo", "ppo", {name: list(enumerate(values, 1)) for name, values in metrics.items()})


@pytest.mark.parametrize(
    ("sick", "well", "name"),
    [
        ({"explained_variance": [-0.2] * 30}, {"explained_variance": [-0.2] * 14 + [0.4] * 16}, "blind-critic"),
        ({"ref_kl": [0.02 * 1.3**n for n in range(30)]}, {"ref_kl": [0.1 * n for n in range(30)]}, "kl-runaway"),
        ({"approx_kl": [0.1] * 6}, {"approx_kl": [0.1] + [0.01] * 5}, "oversized-updates"),
        ({"clip_low_frac": [0.2] * 6, "clip_high_frac": [0.2] * 6}, {"clip_low_frac": [0.01] * 6}, "oversized-updates"),
    ],
)
def test_curves_alone(sick: dict[str, list[float]], well: dict[str, list[float]], name: str) -> None:
    assert [finding.pathology for finding in examine([course(**sick)])] == [name]
    assert examine([course(**well)]) == []


def test_reward_collapse(ward: Ward) -> None:
    """Half the way the reward is turned round: what was learned is lost."""

    def turned(n: int, text: str) -> float:
        return good(n, text) if n < 16 * CONFIG.problems else 0.1 * (text[:1] == "h")

    found = ward.train(turned, replace(CONFIG, steps=28))
    assert "reward-collapse" in names(found)
    assert 14 <= next(f for f in found if f.pathology == "reward-collapse").first_step <= 18


# ---- the command and the report


def test_the_command_names_it_and_the_report_shows_it(ward: Ward, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = ward.train(lambda n, text: 0.0, replace(CONFIG, steps=4))
    assert main(["doctor", f"{ward.dir}:grpo"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("zero-variance-starvation: grpo, steps 1 to 4\n") and f"cure: {found.cure}" in out
    assert main(["doctor", str(ward.dir), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"] is False and told["findings"] == [found.as_json()]
    page = write_report(ward.dir)
    assert "zero-variance-starvation" in page.read_text("utf-8") and found.what in page.read_text("utf-8")
    assert json.loads(page.with_suffix(".json").read_text())["doctor"]["findings"] == [found.as_json()]


def test_what_cannot_be_examined(ward: Ward, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path / "nothing")]) == 1
    assert "no run folder" in capsys.readouterr().err
    with Run.open(ward.dir, "sft", {}, 0, Store(ward.home / "store")) as run:
        run.log("sft", 1, {"sft/loss": 1.0})
    assert main(["doctor", str(ward.dir)]) == 0
    assert "nothing to judge" in capsys.readouterr().out
    assert main(["doctor", f"{ward.dir}:none"]) == 2


def test_every_pathology_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text("utf-8")
    for pathology in PATHOLOGIES:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{pathology.name}`"))
        assert pathology.cure.replace("`", "") in row.replace("`", "")
    for name in Limits.__dataclass_fields__:
        assert f"`{name}`" in page or name in ("stays", "rise", "errors", "steps"), name
