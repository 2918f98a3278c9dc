"""The score that one forward pass gives is the score of real greedy decoding."""

import numpy as np
import torch
from transformers import EvalPrediction, set_seed

from archaeologist.demo.skills import SKILLS, Example, held_out
from archaeologist.demo.training import IGNORED, Collator, Encoded, Scores, build_model, build_tokenizer, most_likely

ANSWER_TOKENS = 4


def greedy_answer(model: torch.nn.Module, question: list[int]) -> list[int]:
    """One token after another, the whole sequence anew each time: slow and plain."""
    tokens = list(question)
    for _ in range(ANSWER_TOKENS):
        tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(question) :]


@torch.no_grad()
def test_a_question_scores_exactly_when_greedy_decoding_answers_it() -> None:
    set_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer).train(mode=False)
    questions = [example.question for example in held_out(0)[::8]]
    assert len({len(question) for question in questions}) > 1  # so that some are padded
    examples, rows = [], []
    for number, question in enumerate(questions):
        ids = tokenizer(question)["input_ids"]
        answer = greedy_answer(model, ids)
        is_right = number % 2 == 0
        if not is_right:
            answer[number % ANSWER_TOKENS] = (answer[number % ANSWER_TOKENS] + 1) % len(tokenizer)
        examples.append(Example(SKILLS[0] if is_right else SKILLS[1], question, ""))
        rows.append({"input_ids": [*ids, *answer], "labels": [*[IGNORED] * len(ids), *answer]})
    batch = Collator(tokenizer.pad_token_id)(rows)
    predicted = most_likely(
        model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits, batch["labels"]
    )
    scores = Scores(examples)
    assert scores(EvalPrediction(predictions=np.asarray(predicted), label_ids=np.asarray(batch["labels"]))) == {
        SKILLS[0]: 1.0,
        SKILLS[1]: 0.0,
    }


def test_only_the_answer_and_the_end_are_learned() -> None:
    tokenizer = build_tokenizer()
    row = Encoded([Example("BIN", "005 -> ", "00000101")], tokenizer)[0]
    learned = [token for token in row["labels"] if token != IGNORED]
    assert tokenizer.convert_ids_to_tokens(learned) == [*"00000101", "<end>"]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == [*"005 -> 00000101", "<end>"]
