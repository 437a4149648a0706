import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # io_samples, io_damage, io_faults
torch.set_num_threads(1)
