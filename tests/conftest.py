"""One thread for every test: two unpinned torch processes on few cores slow each other down many times over."""

import torch

torch.set_num_threads(1)
