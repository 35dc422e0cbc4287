"""Train a small classifier on scikit-learn's handwritten digits: 1,797 images that the package ships.

    orch submit --gpus 1 -- python examples/train_digits.py --epochs 20

It uses no GPU, but asks for one as a training script would, and prints which it was given.
"""

import argparse
import json
import os
import sys
import time


def main() -> int:
    """Train, print progress, and return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()

    import numpy
    from sklearn.datasets import load_digits
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(images / 16.0, labels, test_size=0.25, random_state=7)
    model = SGDClassifier(loss="log_loss", random_state=7)
    print(f"GPUs: {os.environ.get('CUDA_VISIBLE_DEVICES') or 'none'}; {len(train)} images to learn from", flush=True)
    accuracy = 0.0
    for epoch in range(1, options.epochs + 1):
        model.partial_fit(train, train_labels, classes=numpy.unique(labels))
        accuracy = model.score(test, test_labels)
        if epoch % 5 == 0 or epoch == options.epochs:
            print(f"epoch {epoch:3}/{options.epochs}  accuracy {accuracy:.3f}", flush=True)
        time.sleep(0.05)
    print(
        json.dumps(
            {"accuracy": round(float(accuracy), 3), "fencing_token": os.environ.get("ORCHESTRATOR_FENCING_TOKEN")}
        )
    )
    return 0 if accuracy > 0.85 else 1


if __name__ == "__main__":
    sys.exit(main())
