"""The sections of a model's config for encoders of images and of speech, whose states become tokens of the decoder, and what
these encoders take. Configs and requests are checked without JAX, so this file does not load it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from lm.errors import UserError

NAMES = ("vision", "audio")  # sections of a ModelConfig, in the order of the fields of Media
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu2", "silu")
PROJECTORS = ("linear", "mlp")


@dataclasses.dataclass(frozen=True)
class Vision:
    """A vision transformer (Dosovitskiy et al. 2021) in the form of SigLIP or CLIP, and its projector to the decoder."""

    num_layers: int = 0  # encoder layers; 0: the model sees no images
    embed_dim: int = 768  # size of a patch's vector between layers
    num_heads: int = 12  # heads of queries, keys and values; a divisor of embed_dim
    mlp_dim: int = 3072  # hidden units of a layer's feed-forward
    image_size: int = 224  # pixels on each side of an image tile
    patch_size: int = 16  # pixels on each side of a patch; the rest of the image's right and lower edge is not seen
    activation: str = "gelu_tanh"  # gelu, gelu_tanh, quick_gelu (CLIP), relu2, silu
    norm_eps: float = 1e-6  # epsilon of the norms
    class_token: bool = False  # a learned vector before the patches (CLIP); it is not projected
    patch_bias: bool = True  # bias of the patch embedding
    pre_norm: bool = False  # a norm before the first layer (CLIP)
    feature_layer: int = 0  # states to project: 0: after the last norm; -1: after the last layer; -2: the layer before (LLaVA)
    shuffle: int = 1  # pixel shuffle: squares of so many patches on each side become one token (Idefics3)
    projector: str = "linear"  # linear: one matrix without bias (Idefics3); mlp: two with an activation between (LLaVA)
    projector_activation: str = "gelu"  # of mlp
    projector_bias: bool = True  # biases of mlp
    token_id: int = -1  # id of the token that holds the place of one projected vector; -1: the tokenizer's symbol for it

    @property
    def patches(self) -> int:
        """Return the number of patches on each side of an image."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Return the number of tokens of an image."""
        return (self.patches // self.shuffle) ** 2

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of an image: pixels of a column, of a row, and color channels."""
        return self.image_size, self.image_size, 3

    @property
    def used_layers(self) -> int:
        """Return how many layers the projected states have passed."""
        return self.num_layers + min(0, self.feature_layer + 1)

    @property
    def projector_inputs(self) -> int:
        return self.embed_dim * self.shuffle**2


@dataclasses.dataclass(frozen=True)
class Audio:
    """An encoder of log-mel spectrograms in the form of Whisper's (Radford et al. 2022), and the projector to the decoder."""

    num_layers: int = 0  # encoder layers; 0: the model hears nothing
    embed_dim: int = 384  # size of a frame's vector between layers
    num_heads: int = 6  # heads of queries, keys and values; a divisor of embed_dim
    mlp_dim: int = 1536  # hidden units of a layer's feed-forward
    num_mels: int = 80  # mel bands of a spectrogram frame
    num_frames: int = 3000  # spectrogram frames of a window (30 s at 100 a second); the encoder halves them
    activation: str = "gelu"  # gelu, gelu_tanh, quick_gelu, relu2, silu
    norm_eps: float = 1e-5  # epsilon of the norms
    stack: int = 4  # encoder frames that are joined to one token
    projector: str = "mlp"  # linear: one matrix without bias; mlp: two with an activation between (Voxtral)
    projector_activation: str = "gelu"  # of mlp
    projector_bias: bool = True  # biases of mlp
    token_id: int = -1  # id of the token that holds the place of one projected vector; -1: the tokenizer's symbol for it

    @property
    def positions(self) -> int:
        """Return the number of frames that the encoder's layers see."""
        return self.num_frames // 2

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape of a window's spectrogram: frames and mel bands."""
        return self.num_frames, self.num_mels

    @property
    def tokens(self) -> int:
        """Return the number of tokens of a window."""
        return self.positions // self.stack

    @property
    def projector_inputs(self) -> int:
        return self.embed_dim * self.stack


class Media(NamedTuple):
    """The images and the sound of a batch; None: there are none.

    images_BNHWC: float, normalised, of `vision.image_size` pixels on each side. audio_BNTM: float log-mel spectrograms of
      `audio.num_frames` frames. Rows with fewer than N are filled up, with zeros for instance; what fills them is not read.

    The k-th token of a row whose id is `vision.token_id` becomes the k-th vector of that row's images, in the order of the
    images; each has `vision.tokens` of them. The same for sound. So several examples can be packed in a row.
    """

    images_BNHWC: Any = None
    audio_BNTM: Any = None


def check_text(prompt: Sequence[int], name: str, config) -> None:
    """Raise UserError if a prompt without media has tokens of the encoder `name`. config: a ModelConfig."""
    section = getattr(config, name)
    if section.num_layers and (places := prompt.count(section.token_id)):
        raise UserError(
            f"a prompt without media has {places} tokens {section.token_id}, each the place of a vector of model.{name}: give "
            "the media, or leave these tokens out"
        )


def check_towers(config, checked) -> None:
    """Raise UserError for an encoder that cannot be built. checked: a lm.config.checks.Checked.

    config: a ModelConfig; it is not imported here, because it holds these sections.
    """
    for name, tower in (("vision", config.vision), ("audio", config.audio)):
        if not tower.num_layers:
            continue
        at_least_1 = ("num_layers", "embed_dim", "num_heads", "mlp_dim")
        at_least_1 += ("image_size", "patch_size", "shuffle") if name == "vision" else ("num_mels", "num_frames", "stack")
        for key in at_least_1:
            checked.at_least(f"{name}.{key}", 1)
        if tower.embed_dim % tower.num_heads:
            checked.refuse(f"{name}.num_heads", f"does not divide model.{name}.embed_dim={tower.embed_dim}")
        checked.one_of(f"{name}.activation", *ACTIVATIONS)
        checked.one_of(f"{name}.projector_activation", *ACTIVATIONS)
        checked.one_of(f"{name}.projector", *PROJECTORS)
        if not tower.norm_eps > 0:
            checked.refuse(f"{name}.norm_eps", "must be above 0")
        if not 0 <= tower.token_id < config.vocab_size:
            checked.refuse(
                f"{name}.token_id", f"must be the id of a token that nothing else uses, in 0…{config.vocab_size - 1}"
            )
        for key, off in (("mup_base_dim", 0), ("mtp_depth", 0)):
            if getattr(config, key) != off:
                checked.refuse(key, f"does not go with model.{name}: set it to {off}")
    vision, audio = config.vision, config.audio
    if vision.num_layers:
        if vision.patch_size > vision.image_size:
            checked.refuse("vision.patch_size", f"is more than model.vision.image_size={vision.image_size}")
        if vision.patches % vision.shuffle:
            checked.refuse("vision.shuffle", f"does not divide the {vision.patches} patches on each side of an image")
        if not -vision.num_layers <= vision.feature_layer <= 0:
            checked.refuse("vision.feature_layer", f"must be in -{vision.num_layers}…0")
    if audio.num_layers and audio.num_frames % (2 * audio.stack):
        checked.refuse("audio.num_frames", f"must be a multiple of 2 × model.audio.stack = {2 * audio.stack}")
    if vision.num_layers and audio.num_layers and vision.token_id == audio.token_id:
        checked.refuse("audio.token_id", "must not be model.vision.token_id")
