"""One thread for every test: unpinned torch processes on few cores slow each other many times."""

import torch

torch.set_num_threads(1)
