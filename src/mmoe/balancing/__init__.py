"""Balance the tasks of a training: weigh their losses, or combine their gradients."""
