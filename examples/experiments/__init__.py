"""What the example programs are made of: data, models, optimizers, training and reports."""
