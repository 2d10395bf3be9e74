"""The views that queries may use, in SQL, with the meaning of each column. Tables come from factory/schema.py.

Judgments become verdicts here as in factory/verdicts.py: the latest reading of each question, no canary, no failed
reading, no half-asked pair; a tie is |p_a - 1/2| < 0.05 for pairs, equal scores for scores. Batches in quarantine are
in: `factory agreement` and the making of preferences leave them out.
"""

from __future__ import annotations

from typing import NamedTuple


class View(NamedTuple):
    """A view: its meaning, its columns as {name: (DuckDB type, meaning)} or the table whose columns it has, and the
    SELECT behind it."""

    name: str
    meaning: str
    columns: dict[str, tuple[str, str]]
    sql: str
    columns_of: str = ""


TEXT, COUNT, NUMBER, FLAG, TIME = "VARCHAR", "BIGINT", "DOUBLE", "BOOLEAN", "TIMESTAMP"
MESSAGES = "STRUCT(role VARCHAR, content VARCHAR, name VARCHAR, tool_call_id VARCHAR, tool_calls VARCHAR)[]"
"""Calls of tools are JSON text in SQL."""
_RUN = {"run": (TEXT, "run"), "round": (COUNT, "round")}

RUNS: dict[str, tuple[str, str]] = {
    "run": (TEXT, "name of the run"),
    "recipe": (TEXT, "its resolved recipe (YAML)"),
    "info": (TEXT, "JSON: versions, seeds and hashes"),
    "at": (TIME, "when it began (UTC)"),
}
MARKS: dict[str, tuple[str, str]] = {
    "run": (TEXT, "run"),
    "round": (COUNT, "round"),
    "stage": (TEXT, "stage of the round"),
    "state": (TEXT, "started | done | failed"),
    "detail": (TEXT, "JSON: what the stage said"),
    "pid": (COUNT, "process that did it"),
    "at": (TIME, "when (UTC)"),
}


def _talk(column: str) -> str:
    """SQL for the messages of a column as lines of "role: content"."""
    said = "m.role || ': ' || m.content || coalesce(' ' || m.tool_calls, '')"
    return f"array_to_string([{said} FOR m IN {column}], chr(10))"


_BLANKS = "' ' || chr(9) || chr(10) || chr(11) || chr(12) || chr(13)"

LATEST_CALLS = View(
    "latest_calls",
    "the latest attempt of every call; columns as in calls",
    {},
    "SELECT * FROM calls QUALIFY row_number() OVER (PARTITION BY key ORDER BY attempt DESC) = 1",
    columns_of="calls",
)

COST = View(
    "cost",
    "what was paid for, by run, round, purpose and model; every attempt counts",
    _RUN
    | {
        "purpose": (TEXT, "generate | judge | critique | revise | evaluate ..."),
        "model": (TEXT, "name of the model"),
        "calls": (COUNT, "calls, failed ones included"),
        "failed": (COUNT, "calls that failed"),
        "prompt_tokens": (COUNT, "tokens read"),
        "completion_tokens": (COUNT, "tokens written"),
        "cost": (NUMBER, "US dollars of the calls whose price is known; null when none is"),
        "unknown_prices": (COUNT, "answered calls whose price is unknown"),
        "seconds": (NUMBER, "sum of latencies"),
    },
    """
    SELECT run, round, purpose, model, count(*) AS calls, count(failure) AS failed,
        sum(prompt_tokens)::BIGINT AS prompt_tokens, sum(completion_tokens)::BIGINT AS completion_tokens,
        sum(cost) AS cost, count(*) FILTER (cost IS NULL AND failure IS NULL) AS unknown_prices,
        sum(latency) AS seconds
    FROM calls GROUP BY ALL
    """,
)

ANSWERS = View(
    "answers",
    "every candidate with the text of its prompt",
    _RUN
    | {
        "candidate": (TEXT, "candidates.key"),
        "prompt_key": (TEXT, "prompts.key"),
        "split": (TEXT, "split of the prompt"),
        "kind": (TEXT, "sample | draft | critique | revision | given"),
        "model": (TEXT, "model that wrote it"),
        "sample": (COUNT, "index among the prompt's samples"),
        "prompt": (TEXT, "the conversation, a line a turn"),
        "answer": (TEXT, "the answer"),
        "tokens": (COUNT, "tokens of the answer"),
        "finish_reason": (TEXT, "stop | length"),
        "failure": (TEXT, "kind of failure; null when there is an answer"),
    },
    f"""
    SELECT c.run, c.round, c.key AS candidate, c.prompt_key, c.split, c.kind, c.model, c.sample,
        {_talk("p.messages")} AS prompt, c.text AS answer, c.tokens, c.finish_reason, c.failure
    FROM candidates c LEFT JOIN prompts p ON p.key = c.prompt_key
    """,  # noqa: S608
)

REVISIONS = View(
    "revisions",
    "every revision beside its draft and its critique; completions to train on are those that are final and not failed",
    _RUN
    | {
        "revision": (TEXT, "candidates.key of the revision"),
        "draft": (TEXT, "candidates.key of the draft that its chain began with"),
        "prompt_key": (TEXT, "prompts.key"),
        "split": (TEXT, "split of the prompt"),
        "sample": (COUNT, "index of the draft among the prompt's samples"),
        "step": (COUNT, "1 for the first revision of its chain"),
        "principle": (TEXT, "name of the principle"),
        "prompt": (TEXT, "the conversation, a line a turn"),
        "draft_text": (TEXT, "the answer that the chain began with"),
        "before_text": (TEXT, "the answer that was criticised: the draft, or the revision before"),
        "critique_text": (TEXT, "the critique"),
        "revision_text": (TEXT, "the answer written anew"),
        "outcome": (TEXT, "revised | unchanged: it says what was criticised | failed"),
        "failure": (TEXT, "kind of failure; null when there is a revision"),
        "final": (FLAG, "is it usable, and does no usable revision follow it?"),
        "messages": (MESSAGES, "the conversation, as prompts.messages"),
        "completion": ("STRUCT(role VARCHAR, content VARCHAR)[]", "the revision as one assistant turn"),
    },
    f"""
    WITH RECURSIVE step AS (
        SELECT c.key AS critique, c.text AS critique_text, r.*, c.parent AS before
        FROM candidates c JOIN candidates r ON r.parent = c.key WHERE c.kind = 'critique' AND r.kind = 'revision'
    ), chain AS (
        SELECT d.key AS draft, d.text AS draft_text, d.key AS answer, d.text AS answer_text, 0::BIGINT AS length
        FROM candidates d WHERE d.kind NOT IN ('critique', 'revision')
        UNION ALL
        SELECT draft, draft_text, step.key, step.text, length + 1 FROM chain JOIN step ON step.before = chain.answer
    )
    SELECT s.run, s.round, s.key AS revision, draft, s.prompt_key, s.split, s.sample, length + 1 AS step, s.principle,
        {_talk("p.messages")} AS prompt, draft_text, answer_text AS before_text, critique_text, s.text AS revision_text,
        CASE WHEN s.failure IS NOT NULL THEN 'failed' WHEN trim(s.text, {_BLANKS}) = trim(answer_text, {_BLANKS})
            THEN 'unchanged' ELSE 'revised' END AS outcome,
        s.failure,
        s.failure IS NULL AND NOT EXISTS (FROM step n WHERE n.before = s.key AND n.failure IS NULL) AS final,
        p.messages, [{{'role': 'assistant', 'content': s.text}}] AS completion
    FROM step s JOIN chain ON s.before = chain.answer LEFT JOIN prompts p ON p.key = s.prompt_key
    """,  # noqa: S608
)

READINGS = View(
    "readings",
    "the latest judgment on each question, canaries left out; columns as in judgments",
    {},
    """
    SELECT * FROM judgments WHERE NOT canary
    QUALIFY row_number() OVER (
        PARTITION BY run, round, judge, candidate_a, candidate_b, aspect, shown_first ORDER BY "at" DESC, key DESC
    ) = 1
    """,
    columns_of="judgments",
)

CANDIDATE_SCORES = View(
    "candidate_scores",
    "what each pointwise judge says of each candidate: the mean over aspects; none where an aspect failed",
    _RUN
    | {
        "judge": (TEXT, "name of the judge"),
        "prompt_key": (TEXT, "prompts.key"),
        "candidate": (TEXT, "candidates.key"),
        "score": (NUMBER, "mean score on the judge's own scale"),
        "share": (NUMBER, "mean score as a share of the scale, 0 to 1; on log-odds r: 1/2 + r / (2 + 2|r|)"),
        "log_odds": (FLAG, "is the score one of log-odds without ends, as a reward model's?"),
        "aspects": (COUNT, "aspects judged"),
    },
    """
    SELECT run, round, judge, prompt_key, candidate_a AS candidate, avg(score) AS score,
        avg(CASE WHEN open THEN 0.5 + 0.5 * score / (1 + abs(score))
            WHEN high > low THEN greatest(0, least(1, (score - low) / (high - low))) ELSE 0 END) AS share,
        bool_and(open) AS log_odds, count(*) AS aspects
    FROM (SELECT *, score_low IS NULL AND score_high IS NULL AS open, coalesce(score_low, 0) AS low,
        coalesce(score_high, 1) AS high FROM readings)
    WHERE candidate_b IS NULL
    GROUP BY ALL HAVING bool_and(failure IS NULL AND score IS NOT NULL)
    """,
)

VERDICTS = View(
    "verdicts",
    "what each judge says of each pair, both orders taken together; a pointwise judge by its two scores; batches in "
    "quarantine included",
    _RUN
    | {
        "judge": (TEXT, "name of the judge"),
        "prompt_key": (TEXT, "prompts.key"),
        "candidate_a": (TEXT, "candidates.key, the smaller of the two"),
        "candidate_b": (TEXT, "candidates.key, the greater of the two"),
        "p_a": (NUMBER, "probability that a is the better"),
        "verdict": (TEXT, "a | b | tie"),
        "flipped": (FLAG, "did the two orders give different verdicts? null where there are no orders"),
        "read_from": (TEXT, "pairs | scores"),
    },
    """
    WITH asked AS (
        SELECT run, round, judge, prompt_key, candidate_a, candidate_b, aspect,
            bool_and(failure IS NULL AND p_a IS NOT NULL) AS answered,
            (count(*) = 2 AND count(shown_first) = 2) OR (count(*) = 1 AND count(shown_first) = 0) AS complete,
            avg(p_a) AS p_a, bool_and(p_a IN (0, 0.5, 1)) AS textual,
            CASE WHEN count(shown_first) > 0
                THEN min(coalesce(verdict, '')) <> max(coalesce(verdict, '')) END AS flipped
        FROM readings WHERE candidate_b IS NOT NULL GROUP BY ALL
    ), judged AS (
        SELECT run, round, judge, prompt_key, candidate_a, candidate_b,
            avg(CASE WHEN flipped AND textual THEN 0.5 ELSE p_a END) AS p_a, bool_or(flipped) AS flipped,
            'pairs' AS read_from, 0.05 AS margin
        FROM asked GROUP BY run, round, judge, prompt_key, candidate_a, candidate_b
        HAVING bool_and(answered AND complete)
        UNION ALL
        SELECT run, round, judge, prompt_key, a.candidate, b.candidate,
            CASE WHEN a.log_odds AND b.log_odds THEN 1 / (1 + exp(least(700, b.score - a.score)))
                ELSE 0.5 + (a.share - b.share) / 2 END, NULL, 'scores', 1e-9
        FROM candidate_scores a JOIN candidate_scores b USING (run, round, judge, prompt_key)
        WHERE a.candidate < b.candidate
            AND (run, round, judge) NOT IN (
                SELECT (run, round, judge) FROM readings WHERE candidate_b IS NOT NULL)
    )
    SELECT run, round, judge, prompt_key, candidate_a, candidate_b, p_a,
        CASE WHEN abs(p_a - 0.5) < margin THEN 'tie' WHEN p_a > 0.5 THEN 'a' ELSE 'b' END AS verdict,
        flipped, read_from
    FROM judged
    """,
)

AGREEMENT = View(
    "agreement",
    "per run and pair of judges: how often they say the same of the pairs that both judged",
    {
        "run": (TEXT, "run"),
        "judge_1": (TEXT, "a judge"),
        "judge_2": (TEXT, "another judge"),
        "items": (COUNT, "pairs of answers judged by both"),
        "agreement": (NUMBER, "share of them with the same verdict (a, b or tie)"),
        "decided": (COUNT, "pairs on which neither said tie"),
        "decided_agreement": (NUMBER, "share of those with the same verdict"),
    },
    """
    SELECT run, x.judge AS judge_1, y.judge AS judge_2, count(*) AS items,
        avg((x.verdict = y.verdict)::INT) AS agreement,
        count(*) FILTER (x.verdict <> 'tie' AND y.verdict <> 'tie') AS decided,
        avg((x.verdict = y.verdict)::INT) FILTER (x.verdict <> 'tie' AND y.verdict <> 'tie') AS decided_agreement
    FROM verdicts x JOIN verdicts y USING (run, round, candidate_a, candidate_b)
    WHERE x.judge < y.judge GROUP BY ALL
    """,
)

JUDGE_STATS = View(
    "judge_stats",
    "per run and judge: how much it said, how often it failed, and its habits; canaries left out",
    {
        "run": (TEXT, "run"),
        "judge": (TEXT, "name of the judge"),
        "judgments": (COUNT, "questions put to it"),
        "failures": (COUNT, "questions without a usable answer"),
        "mean_score": (NUMBER, "mean score on its own scale; null for a pairwise judge"),
        "first_share": (NUMBER, "share of its decided single-order verdicts that go to the answer shown first"),
        "pairs": (COUNT, "pairs with a verdict, both orders taken together"),
        "ties": (COUNT, "of them ties"),
        "flip_rate": (NUMBER, "share of pairs on which the two orders gave different verdicts"),
        "longer_share": (NUMBER, "share of decided pairs that go to the longer answer (in characters)"),
    },
    """
    WITH said AS (
        SELECT run, judge, count(*) AS judgments, count(failure) AS failures, avg(score) AS mean_score,
            avg((verdict = shown_first)::INT) FILTER (verdict IN ('a', 'b') AND failure IS NULL) AS first_share
        FROM readings GROUP BY ALL
    ), decided AS (
        SELECT v.run, v.judge, count(*) AS pairs, count(*) FILTER (v.verdict = 'tie') AS ties,
            avg(v.flipped::INT) AS flip_rate,
            avg(((v.verdict = 'a') = (length(a.text) > length(b.text)))::INT)
                FILTER (v.verdict <> 'tie' AND length(a.text) <> length(b.text)) AS longer_share
        FROM verdicts v LEFT JOIN candidates a ON a.key = v.candidate_a LEFT JOIN candidates b ON b.key = v.candidate_b
        GROUP BY ALL
    )
    SELECT run, judge, judgments, failures, mean_score, first_share, coalesce(pairs, 0) AS pairs,
        coalesce(ties, 0) AS ties, flip_rate, longer_share
    FROM said LEFT JOIN decided USING (run, judge)
    """,
)

JUDGE_COST = View(
    "judge_cost",
    "what the judgments of each judge cost, canaries and failures included; every attempt counts",
    {
        "run": (TEXT, "run of the judgments"),
        "judge": (TEXT, "name of the judge"),
        "model": (TEXT, "model that was asked"),
        "calls": (COUNT, "calls behind its judgments"),
        "failed": (COUNT, "calls that failed"),
        "tokens": (COUNT, "tokens read and written"),
        "cost": (NUMBER, "US dollars of the calls whose price is known; null when none is"),
        "unknown_prices": (COUNT, "answered calls whose price is unknown"),
    },
    """
    SELECT j.run, j.judge, c.model, count(*) AS calls, count(c.failure) AS failed,
        sum(c.prompt_tokens + c.completion_tokens)::BIGINT AS tokens, sum(c.cost) AS cost,
        count(*) FILTER (c.cost IS NULL AND c.failure IS NULL) AS unknown_prices
    FROM (SELECT DISTINCT run, judge, call_key FROM judgments WHERE call_key IS NOT NULL) j
        JOIN calls c ON c.key = j.call_key
    GROUP BY ALL
    """,
)

PAIRS_TEXT = View(
    "pairs_text",
    "preferences to read: prompt, chosen and rejected as plain text",
    _RUN
    | {
        "key": (TEXT, "preferences.key"),
        "prompt": (TEXT, "the conversation, a line a turn"),
        "chosen": (TEXT, "the better answer"),
        "rejected": (TEXT, "the worse answer"),
        "margin": (NUMBER, "how much better, 0 to 1"),
        "agreement": (NUMBER, "share of the judges that side with it"),
        "probability": (NUMBER, "probability that the chosen is the better, as the judges were combined"),
        "weight": (NUMBER, "weight in training"),
        "flipped": (FLAG, "turned about on purpose, as label noise"),
        "strategy": (TEXT, "pairing strategy"),
        "source": (TEXT, "factory, or the data set it came from"),
    },
    f"""
    SELECT run, round, key, {_talk("prompt")} AS prompt,
        array_to_string([m.content FOR m IN chosen], chr(10)) AS chosen,
        array_to_string([m.content FOR m IN rejected], chr(10)) AS rejected, margin, agreement,
        probability, weight, flipped, strategy, source
    FROM preferences
    """,  # noqa: S608
)

VIEWS: tuple[View, ...] = (
    LATEST_CALLS, COST, ANSWERS, REVISIONS, READINGS, CANDIDATE_SCORES, VERDICTS, AGREEMENT, JUDGE_STATS, JUDGE_COST,
    PAIRS_TEXT,
)  # fmt: skip
"""In the order in which they can be made: a view uses only earlier ones."""
