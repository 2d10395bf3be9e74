"""Prompts, candidates and completions as the tests of judging need them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from factory.schema import Ask, Candidate, Completion, Failure, Judgment, Matchup, Messages, Prompt, digest

AT = datetime(2025, 1, 1)


def prompt_of(text: str = "Tell me about rivers.", *, messages: Messages | None = None) -> Prompt:
    said: Messages = messages or [{"role": "user", "content": text}]
    return Prompt(key=digest(said), messages=said, split="train", group="g", at=AT)


def candidate_of(
    key: str, text: str | None = None, *, prompt: Prompt | None = None, failure: str | None = None, run: str = "r"
) -> Candidate:
    return Candidate(
        key=key,
        run=run,
        prompt_key=(prompt or prompt_of()).key,
        split="train",
        model="m",
        text=f"answer {key}" if text is None else text,
        failure=failure,
        at=AT,
    )


def matchup_of(a: str = "A river flows.", b: str | None = "No.", *, prompt: Prompt | None = None) -> Matchup:
    prompt = prompt or prompt_of()
    second = None if b is None else candidate_of("k2", b, prompt=prompt)
    return Matchup(prompt, candidate_of("k1", a, prompt=prompt), second, secret=b"secret")


def completed(
    ask: Ask,
    text: str = "",
    *,
    logprobs: Mapping[str, float] | None = None,
    finish: str = "stop",
    failure: Failure | None = None,
) -> Completion:
    return Completion(ask.request, 0, text=text, finish_reason=finish, answer_logprobs=logprobs, failure=failure)


def pairwise(
    judge: str,
    a: str,
    b: str,
    p_a: float | None,
    first: str | None = "a",
    *,
    prompt_key: str = "p",
    failure: str | None = None,
    canary: str | None = None,
    aspect: str = "",
    at: datetime = AT,
) -> Judgment:
    verdict = None if p_a is None else "a" if p_a > 0.5 else "b" if p_a < 0.5 else "tie"
    return Judgment(
        key=digest(judge, a, b, first, failure, canary, aspect, p_a, str(at)),
        run="r",
        judge=judge,
        kind="pairwise",
        prompt_key=prompt_key,
        candidate_a=a,
        candidate_b=b,
        shown_first=first,
        verdict=verdict or "none",
        p_a=p_a,
        aspect=aspect,
        canary=canary is not None,
        canary_name=canary,
        failure=failure,
        at=at,
    )


def both(judge: str, a: str, b: str, first: float | None, second: float | None, **rest: str) -> list[Judgment]:
    """Judgments of both orders: p_a when a is shown first, and when b is."""
    return [
        pairwise(judge, a, b, p, order, failure=None if p is not None else "no_verdict", **rest)  # type: ignore[arg-type]
        for p, order in ((first, "a"), (second, "b"))
    ]


def pointwise(
    judge: str,
    a: str,
    score: float | None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    met: bool | None = None,
    prompt_key: str = "p",
    canary: str | None = None,
    aspect: str = "",
    at: datetime = AT,
) -> Judgment:
    return Judgment(
        key=digest(judge, a, score, canary, aspect, str(at)),
        run="r",
        judge=judge,
        kind="pointwise",
        prompt_key=prompt_key,
        candidate_a=a,
        score=score,
        score_low=low,
        score_high=high,
        aspect=aspect,
        detail=None if met is None else {"all_met": met},
        canary=canary is not None,
        canary_name=canary,
        failure=None if score is not None else "no_verdict",
        at=at,
    )
