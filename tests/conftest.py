"""What all tests share: one thread, for small models on a busy machine gain nothing from several that wait."""

import torch

torch.set_num_threads(1)
