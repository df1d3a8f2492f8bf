"""The training loop."""

from __future__ import annotations

from torch.nn import functional as F

from st3fx.training.evaluate import call
from st3fx.training.optim import set_learning_rate
from st3fx.training.saving import save, stop_if_asked
from st3fx.training.scoring import evaluate_epoch
from st3fx.training.session import Session


def train(session: Session) -> None:
    """Train from where the session is to the end of its last epoch.

    A step is an optimizer step: sparsity, learning rate, average, log and checkpoints count these,
    whatever becomes of epochs and batches. Nothing waits for the device but the rows of the log.

    Raises:
        TrainError: When the loss or a weight is not a number any more.
        CheckpointError: When a checkpoint cannot be written. The one before is there still.
        Interrupted: After a signal, and after the state was saved.
    """
    settings, accelerator, model = session.settings, session.accelerator, session.model
    optimizer, sparsifier, running = session.optimizer, session.sparsifier, session.running
    while session.epoch < settings.epochs:
        model.train()
        session.start_clock()
        for number, (inputs, targets) in session.batches.epoch(session.epoch, session.batch):
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    logits = call(model, session.to_format(inputs))
                loss = F.cross_entropy(
                    logits.float(), targets, label_smoothing=settings.label_smoothing
                )
                accelerator.backward(session.share(number) * (loss + sparsifier.penalty()))
                if accelerator.sync_gradients and settings.clip_grad is not None:
                    accelerator.clip_grad_norm_(model.parameters(), settings.clip_grad)
                set_learning_rate(optimizer, session.learning_rate)
                optimizer.step()
                optimizer.zero_grad()
            running.add(loss, logits, targets)
            session.batch = number + 1
            if not accelerator.sync_gradients:
                continue  # more batches belong to this step
            session.step += 1
            if not optimizer.step_was_skipped:  # fp16: gradients overflowed, nothing was changed
                session.follow()
            session.report.step(session.step)
            if session.is_due(settings.log_interval):
                session.log_row()
            if session.is_due(settings.checkpoint_every):
                save(session)
            stop_if_asked(session)
        row = evaluate_epoch(session)
        session.epoch, session.batch = session.epoch + 1, 0
        save(session, best=row.best)
