"""Where CLIP comes from: an open_clip model name or json, and a tag or file of weights."""

from __future__ import annotations

import hashlib
import os
from base64 import b64decode, b64encode
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.clip.config import (
    HUB,
    LOCAL,
    canonical_name,
    check_supported,
    is_weight_path,
    merges_file,
    read_clip_config,
    vision_sizes,
)
from tagclip.modeling.clip.download import fetch_tag
from tagclip.modeling.clip.layouts import describe_misfit
from tagclip.modeling.clip.pixels import beside_weights, statistics
from tagclip.modeling.clip.weights import (
    find_weight_file,
    read_clip_weights,
    weights_sha256,
)
from tagclip.utils.files import expand_path
from tagclip.utils.skip_init import SkipInit
from tagclip.utils.text import error_text, json_text
from tagclip.utils.untrusted import read_gzip

__all__ = ["CLIPSource"]

_RANDOM_SEED = 0
# Ten times CLIP's own merges, unpacked.
_MERGES_BYTES = 32 << 20


class CLIPSource:
    """Lazy access to a CLIP model's config, weights and tokenizer; nothing is read before use."""

    def __init__(
        self,
        name: str,
        pretrained: str = "",
        *,
        cache_dir: str = "",
        sha256: str = "",
        json: str = "",
        merges: str = "",
    ) -> None:
        """Name a model.

        Args:
            name: see `read_clip_config`. In a model json, text_cfg may hold ``"tokenizer_kwargs":
                {"bpe_path": FILE}``, a merges file beside it.
            pretrained: open_clip tag, ``hf-hub:ORGANISATION/REPOSITORY``, path of a file or folder
                that `read_clip_weights` reads, or "" for random weights (always the same ones).
            cache_dir: folder for downloads; "" is huggingface_hub's default.
            sha256: expected checksum of the weight file; "" accepts any, except a TorchScript
                archive that is not one of OpenAI's.
            json: content of the model json; "" reads the file.
            merges: content of its merges file in base64; "" reads the file.
        """
        self.name, self.pretrained = canonical_name(expand_path(name)), expand_path(pretrained)
        self._cache_dir, self._expected_sha256 = expand_path(cache_dir), sha256.lower()
        self._json, self._merges = json, merges

    @classmethod
    def from_config(cls, cfg: CfgNode) -> CLIPSource:
        """Read ``MODEL.CLIP``."""
        clip = cfg.MODEL.CLIP
        return cls(
            clip.NAME,
            clip.PRETRAINED,
            cache_dir=clip.CACHE_DIR,
            sha256=clip.SHA256,
            json=clip.JSON,
            merges=clip.MERGES,
        )

    @cached_property
    def config(self) -> dict[str, Any]:
        """open_clip's model config: ``embed_dim``, ``vision_cfg``, ``text_cfg``, ...

        Raises:
            ConfigError: there is no such model, or one of its towers is not supported.
            CheckpointError: it is on the hub, neither cached nor within reach.
        """
        config = read_clip_config(self.name, self._cache_dir, self._json)
        check_supported(self.name, config)
        return config

    def files_by_content(self) -> tuple[str, str]:
        """Return the model json and, in base64, the merges beside it; "" where there is none.

        Raises:
            ConfigError: a file is missing or cannot be read.
        """
        merges = self._merges_content()
        if not self.name.endswith(".json"):
            return "", ""
        text = self._json or Path(self.name).read_text(encoding="utf-8")
        return text, b64encode(merges).decode() if merges else ""

    @property
    def quick_gelu(self) -> bool:
        """Whether the towers use OpenAI's activation."""
        return bool(self.config.get("quick_gelu", False))

    @property
    def is_timm(self) -> bool:
        """Whether open_clip builds the image tower on timm."""
        return bool(self.config["vision_cfg"].get("timm_model_name"))

    @property
    def is_local(self) -> bool:
        """Whether the weights are a file or folder of this machine, and no public name."""
        if self.pretrained.startswith(HUB):
            return False
        is_path = is_weight_path(self.pretrained)
        # os.path says no of names that no file can have, where pathlib raises OSError.
        return is_path or (os.path.exists(self.pretrained) and not self._tag)

    @cached_property
    def path(self) -> Path | None:
        """The weight file, downloaded if need be; None with random weights.

        Raises:
            CheckpointError: there is no such file or tag, or it cannot be downloaded.
            ConfigError: the model is not supported (nothing is downloaded then), or the tag was
                trained with another activation.
        """
        if not self.pretrained:
            return None
        # Nothing is looked for that an unsupported model could not use.
        _ = self.config
        if self.pretrained.startswith(HUB):
            repository = {"hf_hub": f"{self.pretrained.removeprefix(HUB)}/"}
            return fetch_tag(self.pretrained, repository, self._cache_dir)
        if self.is_local:
            return find_weight_file(Path(self.pretrained))
        if not self._tag:
            from tagclip.modeling.clip.library import open_clip

            tags = ", ".join(open_clip.list_pretrained_tags_by_model(self.name))
            remedy = f"its tags: {tags or 'none'}; name one, or a weight file"
            if self.name.startswith((LOCAL, HUB)):
                remedy = f"set it to {self.name.removeprefix(LOCAL)}, whose weights they are"
            raise CheckpointError(
                f"MODEL.CLIP.PRETRAINED: found {self.pretrained!r}, which is neither a file nor "
                f"a tag of {self.name}; {remedy}"
            )
        self._check_quick_gelu(bool(self._tag.get("quick_gelu", False)))
        return fetch_tag(f"{self.name}/{self.pretrained}", self._tag, self._cache_dir)

    @cached_property
    def _tag(self) -> dict[str, Any]:
        from tagclip.modeling.clip.library import open_clip

        return open_clip.get_pretrained_cfg(self.name, self.pretrained)

    def _check_quick_gelu(self, trained: bool | None) -> None:
        if trained in (None, self.quick_gelu):
            return
        from tagclip.modeling.clip.library import open_clip

        needed = "with" if trained else "without"
        other = f"{self.name}-quickgelu" if trained else self.name.removesuffix("-quickgelu")
        if other != self.name and other in open_clip.list_models():
            remedy = f"{'add' if trained else 'remove'} the suffix -quickgelu"
        else:
            remedy = f'set "quick_gelu": {str(trained).lower()} in its json, or in a copy of it'
        raise ConfigError(
            f"MODEL.CLIP.NAME {self.name}: the weights {self.pretrained!r} were trained {needed} "
            f"QuickGELU, expected a model {needed} it; {remedy}"
        )

    @cached_property
    def sha256(self) -> str:
        """Checksum of the weight file (hex); with random weights, of the config they follow.

        Raises:
            CheckpointError: it is not the expected one.
        """
        if self.path is None:
            found = hashlib.sha256(json_text(self.config, sort_keys=True).encode()).hexdigest()
        else:
            found = weights_sha256(self.path)
        if self._expected_sha256 not in ("", found):
            raise CheckpointError(
                f"{self.path or self.name}: sha256 is {found}, expected {self._expected_sha256}; "
                "the file is damaged or another one: move it away to fetch it again, or mend "
                "MODEL.CLIP.SHA256"
            )
        return found

    @cached_property
    def pixel_statistics(self) -> dict[str, list[float]] | None:
        """``mean`` and ``std`` that come with the weights, by their tag or the json beside them.

        They are of R, G, B with pixels from 0 to 1; None if nothing tells them.
        """
        if self.path is None:
            return None
        if "mean" in self._tag:
            return statistics(self._tag["mean"], self._tag["std"])
        return beside_weights(self.path)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of weights and config: class vectors of another one mean nothing here."""
        content = json_text([self.sha256, self.config], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def vision_config(self) -> dict[str, Any]:
        """Return the sizes of the vision tower as keyword arguments of `CLIPViT`.

        Raises:
            TagCLIPError: see `config`.
        """
        return vision_sizes(self.config)

    def timm_tower(self) -> nn.Module:
        """Build open_clip's frozen ``TimmModel``, float32 on the CPU.

        Raises:
            ConfigError: see `config`.
            CheckpointError: the weights do not fit it.
        """
        state = self.vision_state()
        text = {"layers": 1, "width": 64, "heads": 1, "hf_model_name": None}
        with torch.random.fork_rng(devices=()), torch.device("cpu"), SkipInit():
            tower = self._build(custom_text=True, text_cfg=text).visual
        if misfit := describe_misfit(tower.state_dict(), state):
            raise CheckpointError(
                f"{self.path or self.name}: the vision weights do not fit {self.name}: {misfit}; "
                "check MODEL.CLIP.NAME and MODEL.CLIP.PRETRAINED"
            )
        tower.load_state_dict(state)
        return tower.eval().requires_grad_(False)

    def vision_state(self) -> dict[str, Tensor]:
        """Return the tensors under ``visual.`` without that prefix, float32 on the CPU."""
        state = self.state_dict()
        return {n.removeprefix("visual."): t for n, t in state.items() if n.startswith("visual.")}

    def text_tower(self) -> nn.Module:
        """Build open_clip's frozen text tower, float32 on the CPU.

        Raises:
            ConfigError: see `config`.
            CheckpointError: the weights do not fit it.
        """
        state = {
            name.removeprefix("text."): tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith(("visual.", "logit_"))
        }
        # open_clip has no public way to the text tower alone: the vision tower is of no use, and
        # draws random numbers, which a training must not notice.
        with torch.random.fork_rng(devices=()), torch.device("cpu"), SkipInit():
            tower = self._build(custom_text=True, vision_cfg={"layers": 1, "width": 64}).text
        if misfit := describe_misfit(tower.state_dict(), state):
            raise CheckpointError(
                f"{self.path or self.name}: CLIP's text weights do not fit {self.name}: {misfit}; "
                "check MODEL.CLIP.NAME"
            )
        tower.load_state_dict(state, assign=True)
        # Not used: a mask is made for each length.
        tower.attn_mask = None
        return tower.eval().requires_grad_(False)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text from start to end token, unpadded and untruncated."""
        tokenizer = self._tokenizer
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
        return [[start, *tokenizer.encode(text), end] for text in texts]

    def normalize(self, text: str) -> str:
        """Return what the tokenizer makes of a text before it looks up tokens: repaired Unicode, no
        html entities, lower case."""
        return self._tokenizer.clean_fn(text)

    def decode(self, ids: list[int]) -> str:
        """Return the text that token ids stand for."""
        return self._tokenizer.decode(ids)

    def spelt_words(self, text: str) -> list[str]:
        """Return the words of a text that have no tokens of their own: each takes several, most of
        which stand for a single character or a part of one."""
        tokenizer, words, word = self._tokenizer, [], []
        for token in tokenizer.encode(text):
            word.append(token)
            if tokenizer.decoder[token].endswith("</w>"):
                single = sum(len(tokenizer.decode([part]).strip()) < 2 for part in word)
                found = tokenizer.decode(word).strip()
                # A token of its own may be out of reach: merges come in their order.
                is_known = f"{found}</w>" in tokenizer.encoder
                if len(word) > 1 and 2 * single > len(word) and not is_known:
                    words.append(found)
                word = []
        return words

    def lost_text(self, text: str) -> str:
        """Return what the text tower never reads of a text: all of it if nothing is left after
        `normalize`, or what follows an end token that is spelt out in it."""
        ids, end = self._tokenizer.encode(text), self._tokenizer.eot_token_id
        if not ids:
            return text
        return self._tokenizer.decode(ids[ids.index(end) :]).strip() if end in ids else ""

    @property
    def context_length(self) -> int:
        """Most tokens of a text, start and end included."""
        return self.config["text_cfg"].get("context_length", 77)

    @cached_property
    def _tokenizer(self) -> Any:
        from tagclip.modeling.clip.library import open_clip

        merges = self._merges_content()
        if merges is None:
            return open_clip.SimpleTokenizer()
        # gzip.open, to which it goes, takes files as well as paths.
        tokenizer = open_clip.SimpleTokenizer(bpe_path=BytesIO(merges))
        size = self.config["text_cfg"].get("vocab_size", len(tokenizer.encoder))
        if size < len(tokenizer.encoder):
            raise ConfigError(
                f"{self.name}: found vocab_size {size}, expected {len(tokenizer.encoder)}, the "
                f"tokens of {merges_file(self.name, self.config)}; restore the file that the "
                "model was trained with"
            )
        return tokenizer

    def merges(self) -> bytes:
        """Return the gzipped merges of the tokenizer, the model's own or CLIP's.

        Raises:
            ConfigError: the file is missing or cannot be read.
        """
        from tagclip.modeling.clip.library import open_clip

        return self._merges_content() or Path(open_clip.tokenizer.default_bpe()).read_bytes()

    def _merges_content(self) -> bytes | None:
        """The gzipped merges that the model json names; None means CLIP's own."""
        path = merges_file(self.name, self.config)
        if path is None:
            return None
        if not self._merges and not path.is_file():
            raise ConfigError(f"{self.name}: its tokenizer file {path} is missing; restore it")
        try:
            content = b64decode(self._merges) if self._merges else path.read_bytes()
            read_gzip(BytesIO(content), _MERGES_BYTES).decode("utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.name}: its tokenizer file {path} cannot be read ({error}), expected a "
                "gzipped list of merges; restore it"
            ) from error
        return content

    def _build(self, **changes: Any) -> nn.Module:
        """Build open_clip's model on the current default device.

        Args:
            changes: keys of `config` with other values.

        Raises:
            ConfigError: open_clip cannot build it, for example of its ``norm_kwargs``.
        """
        from tagclip.modeling.clip.library import open_clip

        config = self.config | changes
        # Weights come from `state_dict` alone.
        config["vision_cfg"] = config["vision_cfg"] | {"timm_model_pretrained": False}
        keys = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
        arguments = {key: config[key] for key in keys if key in config}
        kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
        try:
            return kind(**arguments)
        # What open_clip's modules raise on keyword arguments that they do not take.
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"MODEL.CLIP.NAME {self.name}: open_clip cannot build it ({error_text(error)}); "
                "compare its json with open_clip/model_configs"
            ) from error

    def state_dict(self) -> dict[str, Tensor]:
        """Read all weights under open_clip's names, float32 on the CPU.

        Raises:
            CheckpointError: see `read_clip_weights`, or the file fails the checksum.
            ConfigError: they were trained with another activation than the model's.
        """
        if self.path is None:
            return self._random_state()
        confirmed = self.sha256 if self._expected_sha256 else ""
        weights = read_clip_weights(self.path, confirmed_sha256=confirmed)
        self._check_quick_gelu(weights.quick_gelu)
        return weights.state

    def _random_state(self) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(_RANDOM_SEED)
            return self._build().state_dict()
