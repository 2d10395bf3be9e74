"""A small model that ends its answers and gives verdicts, for tests that a random one tells little about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from judged import matchup_of, prompt_of

from factory.judges.pairwise import PairwiseJudge

TOPICS = ("rivers", "mountains", "bread", "music")
ANSWERS = ("Tell the story of {}.", "The {} and the sea, the better story.")


def question(topic: str) -> str:
    return f"Tell me something about {topic}. Do not use commas."


def lessons() -> Iterator[tuple[list[dict[str, str]], str]]:
    """Conversations and the text that goes on: two answers to each question; of nine verdicts eight are A, so
    that the order of showing matters."""
    judge = PairwiseJudge()
    for topic in TOPICS:
        texts = [answer.format(topic) for answer in ANSWERS]
        prompt = prompt_of(question(topic))
        yield from ((list(prompt.messages), text) for text in texts)
        matchup = matchup_of(*texts, prompt=prompt)
        yield from ((list(a.request.messages), f"{judge.prefix}A)") for a in judge.asks(matchup))
    yield list(judge.asks(matchup)[0].request.messages), f"{judge.prefix}B)"


def teach(source: Path, folder: Path, steps: int = 60) -> Path:
    """The tiny model with heads of 32, the smallest that vLLM's CPU attention takes, after a few seconds of training on
    the lessons, so that it ends its answers and gives verdicts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    config = AutoConfig.from_pretrained(source, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    rows = []
    for messages, text in lessons():
        opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt, answer = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (opened, text))
        answer.append(tokenizer.eos_token_id)
        rows.append((torch.tensor([prompt + answer]), torch.tensor([[-100] * len(prompt) + answer])))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        for ids, labels in rows:
            (model(input_ids=ids, labels=labels).loss / len(rows)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
