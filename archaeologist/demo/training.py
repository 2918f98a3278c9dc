"""The demo's training run: a tiny Qwen3, the real Hugging Face Trainer, two skills, the callback.

Run as a process of its own (``python -m archaeologist.demo.training --help``); it is what a person's training script
looks like, so nothing of the daemon is imported. After each save it prints one line of JSON with what was measured.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.utils.data import Dataset
from transformers import (
    EvalPrediction,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from archaeologist.demo.skills import SKILLS, Example, held_out, training
from archaeologist.trainers.huggingface import ArchaeologistCallback

BATCH: Final = 64
BIN_SHARE: Final = 0.75
LEARNING_RATE: Final = 3e-3
WEIGHT_DECAY: Final = 0.5
"""High: with 224 numbers to learn from, it is what makes the model generalise instead of only remembering."""
IGNORED: Final = -100
"""Label of what is not learned: the question and the padding."""
CHARACTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789 ->"
PAD: Final = "<pad>"
END: Final = "<end>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a token a character."""
    alphabet = {token: number for number, token in enumerate((PAD, END, *dict.fromkeys(CHARACTERS)))}
    tokenizer = Tokenizer(models.WordLevel(alphabet, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers annotates in part
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=PAD
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 of 115 thousand parameters, in float32, head tied to the embedding."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForCausalLM(config)


class Encoded(Dataset[dict[str, list[int]]]):
    """Examples as tokens; only the answer and the end are learned."""

    def __init__(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast) -> None:
        questions = tokenizer([example.question for example in examples])["input_ids"]
        answers = tokenizer([example.answer for example in examples])["input_ids"]
        end = tokenizer.eos_token_id
        self._rows = [
            {"input_ids": [*question, *answer, end], "labels": [IGNORED] * len(question) + [*answer, end]}
            for question, answer in zip(questions, answers, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self._rows[index]


class Collator:
    """Pads a batch on the right."""

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """The batch, as long as its longest row."""
        length = max(len(row["input_ids"]) for row in rows)

        def padded(field: str, value: int) -> torch.Tensor:
            return torch.tensor([row[field] + [value] * (length - len(row[field])) for row in rows])

        ids = padded("input_ids", self._pad)
        return {"input_ids": ids, "attention_mask": (ids != self._pad).long(), "labels": padded("labels", IGNORED)}


class Scores:
    """Each skill's share of held-out questions that greedy decoding answers exactly, as last measured.

    Greedy decoding gives an answer exactly when, with the right answer so far in front of it, the most likely next
    token is the right one at every place: so one forward pass scores a batch, and no text need be generated.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self._skills = np.array([example.skill for example in examples])
        self.last: dict[str, float] = {}

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """The Trainer's ``compute_metrics``; predictions are token ids, see ``most_likely``."""
        predicted, labels = np.asarray(prediction.predictions)[:, :-1], np.asarray(prediction.label_ids)[:, 1:]
        is_right = ((predicted == labels) | (labels == IGNORED)).all(axis=1)
        self.last = {skill: float(is_right[self._skills == skill].mean()) for skill in SKILLS}
        return dict(self.last)


def most_likely(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The Trainer's ``preprocess_logits_for_metrics``: the greedy choice at each position."""
    del labels
    return logits.argmax(dim=-1)


class Report(TrainerCallback):
    """Prints what was measured at each save: a line of JSON on standard output."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: object) -> None:
        """One line."""
        del args, control
        newest: dict[str, Any] = {}
        for entry in state.log_history:
            newest |= entry
        line = {"step": state.global_step} | {
            name: newest.get(name) for name in ("loss", "eval_loss", *(f"eval_{skill}" for skill in SKILLS))
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def build_trainer(options: argparse.Namespace) -> Trainer:
    """The Trainer with its callback: what a training script has to write."""
    set_seed(options.seed)
    tokenizer = build_tokenizer()
    questions = held_out(options.seed)
    scores = Scores(questions)
    announcer = ArchaeologistCallback(
        hero_id=options.hero,
        campaign_id=options.campaign,
        nats_url=options.nats_url,
        model_ref="demo/tiny-qwen3",
        skills=lambda: scores.last,
        skill_samples=Counter(question.skill for question in questions),
    )
    trainer = Trainer(
        model=build_model(tokenizer),
        args=_arguments(options),
        train_dataset=Encoded(training(options.seed, count=options.steps * BATCH, bin_share=BIN_SHARE), tokenizer),
        eval_dataset=Encoded(questions, tokenizer),
        data_collator=Collator(tokenizer.pad_token_id),
        processing_class=tokenizer,
        compute_metrics=scores,
        preprocess_logits_for_metrics=most_likely,
        callbacks=[announcer, Report()],
    )
    # It prints on standard output, which is Report's.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(options: argparse.Namespace) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(options.output),
        max_steps=options.steps,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=128,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        adam_beta2=0.98,
        warmup_steps=50,
        eval_strategy="steps",
        eval_steps=options.save_every,
        save_steps=options.save_every,
        # Fewer than are analysed: what the daemon still needs survives by its pins alone.
        save_total_limit=2,
        logging_steps=options.save_every,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=options.seed,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains; 0 when all steps were done."""
    options = _parse(arguments)
    # One core for training, the other for the analysis that runs beside it.
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the same
    trainer = build_trainer(options)
    trainer.train()
    return 0 if trainer.state.global_step == options.steps else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m archaeologist.demo.training", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--hero", required=True)
    parser.add_argument("--campaign", required=True)
    parser.add_argument("--nats-url", default=None)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
