"""The safety loop: attack a model, revise its harmful answers, train on the revisions, attack it again, and report both.

    round-0/evaluation/   the initial model on the held-out requests, under all attack families
    round-1/attacked/     its answers to the training requests, under the training families
    round-1/learn.jsonl, pairs.jsonl, revisions.jsonl, counts.json
    round-1/sft/, dpo/    two runs of lm/align/run.py, each with its own workdir
    round-1/evaluation/   the trained model
    round-2/attacked/     … and so on; the failures after the last round go to failing.jsonl

Every file is written atomically and kept, so the same command resumes a killed run. The last model is published in the workdir
itself, which is then a normal run.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax

from data.chat.examples import read_template
from data.chat.template import end_of_turn
from data.sources import open_sources
from data.text.fingerprints import check_tokenizer, record_tokenizer
from data.text.tokenizer import load_tokenizer
from lm.align.data import templated
from lm.align.run import run as train
from lm.align.safety import critique
from lm.align.safety import data as safety_data
from lm.align.safety.constitution import load_constitution
from lm.align.safety.figures import change
from lm.align.stages import claim, kept_json, kept_lines, kept_seconds, publish, read_lines
from lm.errors import UserError, naming
from lm.evals.engine.encoding import Encoding
from lm.evals.engine.model_subject import ModelSubject
from lm.evals.judges.endpoint import Chat, endpoint
from lm.evals.judges.judges import open_judge
from lm.evals.redteam.prompts import Prompt, read_failures, read_prompts
from lm.evals.redteam.safety_eval import answered, attempts, bits_per_byte, judged, subject_chat, summary
from lm.files.saving import write_json, write_lines
from lm.infer.load import load_model
from lm.model.transformer import Transformer
from lm.parallel import hosts
from lm.parallel.mesh import make_mesh
from lm.runs.damage import damage
from lm.runs.lock import locked
from lm.runs.workdir import check_record, save_record, steps_saved
from lm.runs.workdir import kept_json as read_kept_json
from lm.train.start import adopt
from lm.train.values import check_ranges

FAILURE_KEYS = "id prompt kind hazard family messages answer completion harmful_if response reason".split()
LEAST_1 = ("safety.rounds", "safety.limit", "safety.samples", "safety.text_bytes")
RESUMABLE_KEYS = ("rounds", "timeout", "retries", "key_variable")  # may change when a run resumes


def run(config, workdir: Path, report: Callable[[Path, dict], None], safety_report: Callable[..., None]) -> dict:
    """Run config.safety.rounds rounds from config.init_from and write safety.json, report.json, report.html, failing.jsonl.

    report: writes that of a training run (see lm.align.run.run). safety_report: writes that of the loop
    (lm.reports.safety.write).
    Returns: the content of safety.json: {"before", "after": figures of `lm.evals.redteam.safety_eval.summary`, plus
    "bits_per_byte"; "change" of the headlines; "rounds": [counts of training examples]; "judge", "model" and others}.
    Raises: UserError; Stopped and Diverged as lm.train.loop.train.
    """
    loop = Loop(config, workdir)
    model = Path(config.init_from)
    before = after = loop.evaluation(0, model)
    rounds: list[dict] = []
    for n in range(1, config.safety.rounds + 1):
        rounds.append(loop.lessons(n, model))
        if not rounds[-1]["failed"]:
            break
        model = loop.trained(n, model, report)
        after = loop.evaluation(n, model)
    trained = sum(counts["failed"] > 0 for counts in rounds)
    figures = {"before": before, "after": after, "change": change(before, after), "rounds": rounds}
    return loop.finish(figures, model, trained, safety_report)


class Loop:
    """State shared by the stages: settings, judge, reviser, prompts, and the model that was loaded last."""

    def __init__(self, config, workdir: Path):
        check(config)
        self._fresh = {name: config.model[name].to_dict() for name in ("adapter", "quantization")}
        adopt(config, workdir)
        check_record(config, workdir)
        self.config, self.workdir, self.begin = config, workdir, time.perf_counter()
        s = config.safety
        self.mesh = make_mesh(config.mesh)
        self.constitution = load_constitution(s.constitution)
        self.tokenizer = templated(config, load_tokenizer(config.tokenizer))
        check_tokenizer(workdir, self.tokenizer.fingerprint)
        self.template = read_template(config.chat_template)
        end_of_turn(self.tokenizer, self.template)  # raises UserError if an answer would never end
        self.train_families, self.held_out = families(s.train_families), families(s.held_out_families)
        options = {"valid_fraction": s.valid_fraction, "seed": config.seed, "limit": s.limit}
        with naming("safety.prompts"):
            self.measured = read_prompts(s.prompts, "valid", **options)
            self.learnt = read_prompts(s.prompts, "train", **options)
        self.left_out = 0
        if s.failures:
            with naming("safety.failures"):
                failed, self.left_out = read_failures(s.failures, self.measured)
            self.learnt += failed
        if s.text:
            with naming("safety.text"):
                open_sources(s.text)
        if s.keep:
            with naming("safety.keep"):
                next(safety_data.read_kept(s.keep))
        everything = [*self.measured, *self.learnt]
        self.judge = open_judge(
            s.judge,
            model=s.judge_model,
            harmful_if={p.text: p.harmful_if for p in everything if p.harmful_if},
            hazards={id: f"{h.name} ({h.definition})" for id, h in self.constitution.hazards.items()},
            **self._answering(),
        )
        self._opened: tuple[Path, Transformer] | None = None
        hosts.from_first(self._claim)

    def evaluation(self, n: int, model: Path) -> dict:
        """Return the figures of round n's model on the held-out requests."""
        folder, s = self._round(n) / "evaluation", self.config.safety
        records = self._tried(folder, self.measured, (*self.train_families, *self.held_out), model, "the model of round", n)

        def figures() -> dict:
            return summary(records, self.held_out) | {"bits_per_byte": self._bits_per_byte(model) if s.text else None}

        return kept_json(folder / "figures.json", figures)

    def attacked(self, n: int, model: Path) -> list[dict]:
        """Return the judged answers of round n's initial model to the training requests."""
        folder = self._round(n) / "attacked"
        return self._tried(folder, self.learnt, self.train_families, model, "attacks for round", n)

    def lessons(self, n: int, model: Path) -> dict:
        """Write the training data of round n. Returns its counts by sort."""
        folder, s = self._round(n), self.config.safety
        records = self.attacked(n, model)

        def made() -> dict:
            failed = safety_data.failures(records)
            revisions = safety_data.checked(failed, self._reviser(n, model)(failed), self.judge)
            kept = safety_data.read_kept(s.keep) if s.keep else ()
            learn, pairs, counts = safety_data.lessons(
                records, failed, revisions, self.constitution, kept, s.keep_share, s.harmless_share
            )
            if failed and not counts["failed"]:
                problem = revisions[-1].problem
                raise UserError(f"safety.reviser={s.reviser}: not one usable revision of {len(failed)}; the last: {problem}")
            outcomes = [
                {"id": f["id"], "prompt": f["prompt"], "family": f["family"], "response": f["response"], **r._asdict()}
                for f, r in zip(failed, revisions, strict=True)
            ]
            if hosts.is_first():
                for name, lines in (("learn", learn), ("pairs", pairs), ("revisions", outcomes)):
                    write_lines(folder / f"{name}.jsonl", lines)
            return counts | {"learn": len(learn), "pairs": len(pairs), "unknown": unknown(records)}

        counts = kept_json(folder / "counts.json", made)
        self._say(f"round {n}: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))
        return counts

    def trained(self, n: int, model: Path, report: Callable[[Path, dict], None]) -> Path:
        """Fine-tune on conversations, then on pairs. Returns the workdir of the resulting model."""
        self._opened = None  # free its memory for training
        folder, first = self._round(n), n == 1
        for stage, method, data in (("sft", "sft", "learn"), ("dpo", "preference", "pairs")):
            o = self.config.safety[stage]
            if not o.steps or not hosts.from_first((folder / f"{data}.jsonl").stat).st_size:
                continue
            config = self.config.copy_and_resolve_references()
            with config.unlocked():
                del config.safety
            config.update(method=method, init_from=str(model), steps=o.steps, batch_size=o.batch_size)
            config.optimizer.learning_rate = o.learning_rate
            config.data.input = str(folder / f"{data}.jsonl")
            for name, wanted in self._fresh.items():  # a later model has its own from its checkpoint
                config.model[name].update(wanted if first else dict.fromkeys({"rank", "bits"} & wanted.keys(), 0))

            def made(config=config, stage=stage) -> dict:
                self._say(f"round {n}: {stage}")
                with locked(folder / stage):
                    return train(config, folder / stage, report)

            kept_json(folder / f"{stage}.json", made)
            model, first = folder / stage, False
        return model

    def finish(self, figures: dict, model: Path, trained: int, safety_report: Callable[..., None]) -> dict:
        """Publish the model after `trained` rounds in the workdir and write the reports."""
        s = self.config.safety
        failing = safety_data.failures(self.attacked(trained + 1, model))
        found = figures | {
            "train_families": self.train_families,
            "held_out_families": self.held_out,
            "judge": s.judge,
            "reviser": s.reviser,
            "failing": len(failing),
            "failures_left_out": self.left_out,
            "model": str(model),
        }
        if hosts.from_first(lambda: self._is_finished(found, trained)):
            self._say(f"{self.workdir} is finished after {trained} rounds: raise safety.rounds, or use another --workdir")
            return found
        if trained:
            hosts.from_first(lambda: publish(model, self.workdir))
        if not hosts.is_first():
            return found
        write_lines(self.workdir / "failing.jsonl", [{key: r[key] for key in FAILURE_KEYS} for r in failing])
        seconds = kept_seconds(self.workdir / "seconds.json", time.perf_counter() - self.begin)
        first, last = (read_lines(self._round(n) / "evaluation" / "judged.jsonl") for n in (0, trained))
        safety_report(self.workdir, self.config.to_dict(), found, first, last, {"safety loop": seconds})
        write_json(self.workdir / "safety.json", found)  # the last: all else that is there belongs to it
        return found

    # Parts of stages.

    def _is_finished(self, found: dict, trained: int) -> bool:
        """Return whether `finish` already wrote all its files for the result `found`."""
        steps = steps_saved(self.workdir)
        if trained and (not steps or damage(self.workdir / "checkpoints" / str(max(steps)))):
            return False
        there = all((self.workdir / name).is_file() for name in ("failing.jsonl", "report.json", "report.html"))
        return there and read_kept_json(self.workdir / "safety.json") == json.loads(json.dumps(found))

    def _tried(self, folder: Path, prompts: list[Prompt], names: Iterable[str], model: Path, what: str, n: int) -> list[dict]:
        s = self.config.safety

        def answers() -> list[dict]:
            todo = attempts(prompts, list(names), s.samples)
            self._say(f"{what} {n}: {len(todo)} attempts")
            return answered(todo, self._chat(model, s.temperature))

        drawn = kept_lines(folder / "answers.jsonl", answers)
        records = kept_lines(folder / "judged.jsonl", lambda: judged(drawn, self.judge))
        harmful = [r for r in records if r["kind"] == "harmful"]
        if harmful and unknown(records) == len(harmful):
            hosts.from_first((folder / "judged.jsonl").unlink)
            raise UserError(
                f"safety.judge={s.judge}: no verdict on any of {len(harmful)} answers; the last: {harmful[-1]['reason']}"
            )
        return records

    def _chat(self, model: Path, temperature: float) -> Chat:
        encoding = Encoding(self.tokenizer, template=self.template)
        subject = ModelSubject(self._open(model), encoding, name=model.name)
        tokens, seed = self.config.rollout.max_new_tokens, self.config.seed
        own = subject_chat(subject, max_new_tokens=tokens, temperature=temperature, seed=seed, distinct=True)

        def chat(conversations):
            with jax.set_mesh(self.mesh):
                return own(conversations)

        return chat

    def _open(self, path: Path) -> Transformer:
        if self._opened is None or self._opened[0] != path:
            self._opened = None
            with jax.set_mesh(self.mesh):
                self._opened = path, load_model(path, mesh=self.mesh)
        return self._opened[1]

    def _bits_per_byte(self, model: Path) -> dict | None:
        s = self.config.safety
        texts = [document.text for source in open_sources(s.text, max_bytes=s.text_bytes) for document in source.read()]
        encoding, length = Encoding(self.tokenizer, add_bos=False), self.config.sequence_length  # the begin symbol is no target
        subject = ModelSubject(self._open(model), encoding, name=model.name, max_length=length, progress=False)
        with jax.set_mesh(self.mesh):
            return bits_per_byte(subject, texts)

    def _reviser(self, n: int, model: Path) -> critique.Reviser:
        s, key = self.config.safety, f"{self.config.seed} {n}"
        if s.reviser == "template":
            return critique.from_templates(self.constitution, key)
        if s.reviser == "model":
            chat = self._chat(model, 0.0)
        else:
            chat = endpoint(s.reviser.partition(":")[2], s.reviser_model, **self._answering())
        return critique.by_chat(chat, self.constitution, key)

    def _answering(self) -> dict:
        """Return the keyword arguments for endpoints."""
        return {key: self.config.safety[key] for key in ("key_variable", "timeout", "retries")}

    def _round(self, n: int) -> Path:
        return self.workdir / f"round-{n}"

    def _claim(self) -> None:
        """Prepare the workdir. Raises UserError if it was made with other settings."""
        requests = hashlib.sha256(repr([self.measured, self.learnt]).encode()).hexdigest()[:12]
        ours = {"init_from": str(self.config.init_from), "seed": self.config.seed, "what safety.prompts hold": requests}
        ours |= {f"safety.{key}": value for key, value in self.config.safety.to_dict().items() if key not in RESUMABLE_KEYS}
        claim(self.workdir, "a safety loop", json.loads(json.dumps(ours)), former=("safety.compare",))
        save_record(self.config, self.workdir)
        self.tokenizer.save(self.workdir)
        record_tokenizer(self.workdir, self.tokenizer.fingerprint)

    def _say(self, text: str) -> None:
        if hosts.is_first():
            print(f"[safety] {text}", flush=True)


def check(config) -> None:
    """Raise UserError for invalid settings."""
    s = config.safety
    check_ranges(config, dict.fromkeys(LEAST_1, (1, None)) | {"safety.retries": (0, None)})
    if not 0 < s.valid_fraction < 1:
        raise UserError(f"safety.valid_fraction={s.valid_fraction} must be between 0 and 1")
    for key in ("keep_share", "harmless_share"):
        if not 0 <= s[key] < 1:
            raise UserError(f"safety.{key}={s[key]} must be in [0, 1)")
    if s.sft.steps < 0 or s.dpo.steps < 0 or not s.sft.steps + s.dpo.steps:
        raise UserError(
            f"safety.sft.steps={s.sft.steps}, safety.dpo.steps={s.dpo.steps}: one of them must be above 0, none below"
        )
    if s.samples > 1 and not s.temperature:
        raise UserError(f"safety.samples={s.samples} at safety.temperature=0 would all be the same; raise the temperature")
    if both := set(families(s.train_families)) & set(families(s.held_out_families)):
        raise UserError(f"safety.held_out_families: {', '.join(sorted(both))} is among safety.train_families too")
    attempts([], (*families(s.train_families), *families(s.held_out_families)))  # raises UserError for an unknown family
    if s.reviser not in ("template", "model") and not s.reviser.startswith("openai:"):
        raise UserError(f"safety.reviser={s.reviser!r} is none of template, model, openai:URL")


def families(text: str) -> list[str]:
    """Split names such as "direct,role_play"; drop duplicates."""
    return list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))


def unknown(records: Iterable[dict]) -> int:
    return sum(r.get("verdict") == "unknown" for r in records)
