"""For all tests."""

import torch

# Their tensors are small: a second thread gains nothing, and waits where cores are shared.
torch.set_num_threads(1)
