"""Where a training diverged: the batch and the optimizer step that the error names."""

from types import SimpleNamespace

import pytest
import torch

from mmoe.training.divergence import find_divergence


@pytest.mark.parametrize("accumulated", [1, 2, 3])
@pytest.mark.parametrize("num_batches", [4, 5, 6])
@pytest.mark.parametrize("bad", [0, 1, 3])
def test_the_step_is_that_of_a_plain_loop(accumulated: int, num_batches: int, bad: int):
    """After each batch of the second epoch, and at its end, the same batch and step are named."""
    steps, step_of = 0, {}
    for epoch in range(2):
        for batch in range(num_batches):
            step_of[epoch, batch] = steps + 1
            is_last = batch == num_batches - 1
            steps += (batch + 1) % accumulated == 0 or is_last
            if epoch == 0 or batch < bad:
                continue
            logits = [torch.full((2, 1), float("nan") if i == bad else 0.0) for i in range(batch + 1)]
            trainer = SimpleNamespace(
                global_step=steps, accumulate_grad_batches=accumulated, is_last_batch=is_last, current_epoch=1
            )
            # Earlier batches may be gone.
            for gone in range(bad + 1):
                error = find_divergence(trainer, ["t"], logits[gone:], torch.tensor([True]), num_before=gone)
                assert (error.epoch, error.batch) == (1, bad)
                assert f"in step {step_of[1, bad]} (epoch 2, batch {bad + 1})" in str(error)
            # In the step of the next batch, the older half is checked before the optimizer's step.
            if not is_last:
                trainer.is_last_batch = batch + 1 == num_batches - 1
                after = batch - bad
                error = find_divergence(
                    trainer, ["t"], logits[: bad + 1], torch.tensor([True]), num_after=after
                )
                assert f"in step {step_of[1, bad]} (epoch 2, batch {bad + 1})" in str(error)
