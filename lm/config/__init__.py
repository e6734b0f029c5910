"""The model's config (model.py), with its encoders (towers.py), and whether it can be built (checks.py)."""

from lm.config.checks import ACROSS as ACROSS
from lm.config.checks import RECURRENT as RECURRENT
from lm.config.checks import REMAT as REMAT
from lm.config.model import SECTIONS as SECTIONS
from lm.config.model import Adapter as Adapter
from lm.config.model import LatentAttention as LatentAttention
from lm.config.model import LayerKind as LayerKind
from lm.config.model import MixtureOfExperts as MixtureOfExperts
from lm.config.model import ModelConfig as ModelConfig
from lm.config.model import Pipeline as Pipeline
from lm.config.model import Quantization as Quantization
from lm.config.model import Recurrent as Recurrent
from lm.config.model import Rope as Rope
from lm.config.model import model_keys as model_keys
from lm.config.towers import Audio as Audio
from lm.config.towers import Vision as Vision
