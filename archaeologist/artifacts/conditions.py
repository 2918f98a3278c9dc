"""Under which conditions a model was run: only checkpoints that share them are compared. Pure."""

from collections.abc import Iterable


def conditions(
    *, architecture: str | None, probes: str, tokenizer: str, rankme_tokens: Iterable[int]
) -> tuple[str, ...]:
    """What two checkpoints must have in common for their activations and predictions to be compared.

    Args:
        architecture: The model's, None where config.json names none.
        probes: SHA-256 of the probes.
        tokenizer: SHA-256 of the token ids.
        rankme_tokens: Of each block.
    """
    return (architecture or "", probes, tokenizer, *map(str, sorted(set(rankme_tokens))))
