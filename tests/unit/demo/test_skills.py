from archaeologist.demo.skills import BIN, SKILLS, SY, binary, first_letters, held_out, training


def test_bin_writes_a_number_in_binary() -> None:
    assert binary(5) == (BIN, "005 -> ", "00000101")


def test_sy_takes_the_first_letters() -> None:
    assert first_letters(["apple", "moon", "kite"]) == (SY, "apple moon kite -> ", "amk")


def test_training_never_shows_what_is_held_out() -> None:
    questions = {example.question for example in held_out(0)}
    assert questions.isdisjoint(example.question for example in training(0, count=20_000, bin_share=0.5))


def test_both_skills_are_held_out_and_trained() -> None:
    assert {example.skill for example in held_out(3)} == set(SKILLS)
    assert {example.skill for example in training(3, count=100, bin_share=0.5)} == set(SKILLS)


def test_a_seed_always_gives_the_same_examples() -> None:
    assert held_out(1) == held_out(1)
    assert training(1, count=50, bin_share=0.5) == training(1, count=50, bin_share=0.5)
    assert held_out(1) != held_out(2)
