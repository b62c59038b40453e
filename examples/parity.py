"""Teach a 100-wide network sparse parity from a 500-wide one, by extraction and in one shot.

Run it with: python examples/parity.py
"""

import curricle
from curricle import seeding

SEED, INPUTS, DEGREE = 0, 40, 3


def main(steps: int = 4000) -> dict[str, float]:
    """Return the accuracy of each strategy after the same number of steps.

    Args:
        steps: Length of the teacher's and of each student's training.
    """
    data = curricle.ParityStream(num_inputs=INPUTS, degree=DEGREE, batch_size=64, seed=SEED)
    held_out = curricle.ParityStream(
        num_inputs=INPUTS, degree=DEGREE, batch_size=2048, seed=SEED, purpose="evaluation"
    ).batch(0)
    settings = {"evaluation": [held_out], "optimizer": curricle.SGD(learning_rate=0.3)}

    teacher = network(500, "teacher")
    labels = curricle.from_labels(total=f"{steps} steps")
    taught = curricle.distill(teacher, None, labels, data, **settings)
    print(f"teacher      {taught.metrics['accuracy']:.3f}")

    accuracy = {}
    for curriculum in (
        curricle.one_shot(total=f"{steps // 4} steps"),
        curricle.extraction(total=f"{steps // 4} steps", layer_fraction=0.5),
    ):
        student = network(100, "student")
        result = curricle.distill(student, teacher, curriculum, data, **settings)
        accuracy[curriculum.name] = result.metrics["accuracy"]
        print(f"{curriculum.name:<12} {accuracy[curriculum.name]:.3f}")
    return accuracy


def network(width: int, purpose: str) -> curricle.MLP:
    """Return a network whose first weights depend on the seed and the purpose only."""
    with seeding.scoped(SEED, purpose):
        return curricle.MLP(INPUTS, (width,), 2)


if __name__ == "__main__":
    main()
