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
    CONFIG_FILE,
    HUB,
    LOCAL,
    canonical_name,
    check_supported,
    is_weight_path,
    merges_file,
    read_clip_config,
    vision_sizes,
)
from tagclip.modeling.clip.download import fetch_config, fetch_tag, fetch_tokenizer
from tagclip.modeling.clip.layouts import describe_misfit, to_open_clip
from tagclip.modeling.clip.pixels import beside_weights, interpolation_beside, statistics
from tagclip.modeling.clip.text_tower import TextTower, check_transformer, context_length
from tagclip.modeling.clip.tokenizer import (
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    BytePairTokenizer,
    HuggingFaceTokenizer,
    TextTokenizer,
    check_transformers,
)
from tagclip.modeling.clip.weights import (
    find_weight_file,
    read_clip_weights,
    weights_sha256,
)
from tagclip.utils.files import expand_path
from tagclip.utils.skip_init import SkipInit
from tagclip.utils.text import error_text, json_text
from tagclip.utils.untrusted import read_gzip

__all__ = ["MERGES_BYTES", "CLIPSource"]

_RANDOM_SEED = 0
MERGES_BYTES = 32 << 20
"""Most bytes of merges, unpacked: ten times CLIP's own."""


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
        tokenizer: str = "",
    ) -> None:
        """Name a model.

        Args:
            name: see `read_clip_config`. In a model json, text_cfg may hold ``"tokenizer_kwargs":
                {"bpe_path": FILE}``, a merges file beside it.
            pretrained: open_clip tag, ``hf-hub:ORGANISATION/REPOSITORY``, path of a file or folder
                that `read_clip_weights` reads (``local-dir:FOLDER`` is the same), or "" for random
                weights (always the same ones).
            cache_dir: folder for downloads; "" is huggingface_hub's default.
            sha256: expected checksum of the weight file; "" accepts any, except a TorchScript
                archive that is not one of OpenAI's.
            json: content of the model json; "" reads the file.
            merges: content of its merges file in base64; "" reads the file.
            tokenizer: folder of a tokenizer of transformers, and of the ``config.json`` of a text
                tower of transformers; "" takes what open_clip's config names from the folder of
                the config or from the hub.
        """
        self.name = expand_path(canonical_name(name))
        self.pretrained = expand_path(pretrained.removeprefix(LOCAL))
        self._cache_dir, self._expected_sha256 = expand_path(cache_dir), sha256.lower()
        self._json, self._merges = json, merges
        self._tokenizer_folder = expand_path(tokenizer)

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
            tokenizer=clip.TOKENIZER,
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
        merges = self._own_merges
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
        _ = self.config, self.tokenizer_folder, self.transformer_config
        if self.pretrained.startswith(HUB):
            repository = self.pretrained.removeprefix(HUB)
            file = fetch_tag(self.pretrained, {"hf_hub": f"{repository}/"}, self._cache_dir)
            # Says beside them with which activation and which images they were trained.
            label, setting = f"{self.name}: its weights {self.pretrained}", "MODEL.CLIP.PRETRAINED"
            setting = f"{setting} to a folder with it and the weights"
            fetch_config(label, repository, CONFIG_FILE, self._cache_dir, setting)
            return file
        if self.is_local:
            return find_weight_file(Path(self.pretrained))
        if not self._tag:
            from tagclip.modeling.clip.library import open_clip

            tags = ", ".join(open_clip.list_pretrained_tags_by_model(self.name))
            remedy = f"its tags: {tags or 'none'}; name one, or a weight file"
            if self.name.startswith(HUB) or os.path.basename(self.name) == CONFIG_FILE:
                place = self.name.removesuffix(f"/{CONFIG_FILE}")
                remedy = f"set it to {place}, whose weights they are"
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
        # Known without a download.
        if "mean" in self._tag:
            return statistics(self._tag["mean"], self._tag["std"])
        return None if self.path is None else beside_weights(self.path)

    @cached_property
    def interpolation(self) -> str | None:
        """How images were resized in CLIP's training, "bilinear" or "bicubic".

        None if neither the tag nor the json beside the weights tells it.
        """
        if "interpolation" in self._tag:
            return self._tag["interpolation"]
        return None if self.path is None else interpolation_beside(self.path)

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
        text = {"layers": 1, "width": 64, "heads": 1}
        with torch.random.fork_rng(devices=()), torch.device("cpu"), SkipInit():
            tower = self._build(custom_text=True, text_cfg=text).visual
        width, dim = _timm_width(tower), self.config["embed_dim"]
        if width != dim:
            raise ConfigError(
                f"MODEL.CLIP.NAME {self.name}: its image tower gives vectors of {width} numbers, "
                f"expected {dim} (embed_dim); set vision_cfg.timm_proj to linear in its json"
            )
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

    def text_tower(self) -> TextTower:
        """Build open_clip's frozen text tower, float32 on the CPU.

        Raises:
            ConfigError: see `config` and `tokenizer`.
            CheckpointError: the weights do not fit it.
        """
        # Nothing is read for a tower that no text gets to.
        pad_id = self.tokenizer.pad_id
        state = {
            name.removeprefix("text."): tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith(("visual.", "logit_", "text_decoder."))
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
        tower = TextTower(tower, context_length=self.context_length, pad_id=pad_id)
        return tower.eval().requires_grad_(False)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text from start to end token, unpadded and untruncated."""
        return self.tokenizer.tokenize(texts)

    @property
    def context_length(self) -> int:
        """Most tokens of a text, start and end included."""
        return context_length(self.config["text_cfg"])

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """Of the text tower: CLIP's own, or one of transformers.

        Raises:
            ConfigError: its files are missing or damaged, or have more tokens than the text tower.
            CheckpointError: it is on the hub, neither cached nor within reach.
            NotInstalledError: transformers is missing.
        """
        text, label = self.config["text_cfg"], f"MODEL.CLIP.NAME {self.name}"
        size = text.get("vocab_size", 49408)
        if text.get("hf_model_name"):
            size = self.transformer_config["vocab_size"]
        if text.get("hf_tokenizer_name"):
            return HuggingFaceTokenizer(
                label, self.tokenizer_folder, text, context_length=self.context_length,
                vocab_size=size,
            )  # fmt: skip
        if self._tokenizer_folder:
            raise ConfigError(
                f"MODEL.CLIP.TOKENIZER: found {self._tokenizer_folder}, expected nothing, as "
                f"{self.name} has CLIP's own tokenizer; leave it empty"
            )
        merges, options = self._own_merges, dict(text.get("tokenizer_kwargs") or {})
        options.pop("bpe_path", None)
        tokenizer = BytePairTokenizer(None if merges is None else BytesIO(merges), **options)
        if size < len(tokenizer):
            of = merges_file(self.name, self.config) or "CLIP's own tokenizer"
            raise ConfigError(
                f"{self.name}: found vocab_size {size}, expected {len(tokenizer)}, the tokens of "
                f"{of}; restore the file that the model was trained with"
            )
        end = tokenizer.tokenize([""])[0][-1]
        if text.get("pool_type") == "eos" and text.get("eos_id", 2) != end:
            raise ConfigError(
                f"{self.name}: found text_cfg.eos_id {text.get('eos_id', 2)}, where the text tower "
                f"is read, expected {end}, the end token of CLIP's byte pairs; restore the file "
                "that the model was trained with"
            )
        return tokenizer

    @cached_property
    def tokenizer_folder(self) -> Path | None:
        """Folder of the tokenizer's files: MODEL.CLIP.TOKENIZER, the one of the model's config if
        they lie there, or the hub's cache; None for CLIP's own tokenizer.

        Raises:
            ConfigError: MODEL.CLIP.TOKENIZER is no folder with a tokenizer.
            CheckpointError: it is on the hub, neither cached nor within reach.
            NotInstalledError: transformers is missing.
        """
        name = self.config["text_cfg"].get("hf_tokenizer_name")
        if not name:
            return None
        check_transformers(f"MODEL.CLIP.NAME {self.name}")
        own = self._tokenizer_folder or self._config_folder()
        if own and any(os.path.isfile(os.path.join(own, file)) for file in VOCABULARY_FILES):
            return Path(own)
        if self._tokenizer_folder:
            raise ConfigError(
                f"MODEL.CLIP.TOKENIZER: found no tokenizer in {own}, expected a folder with one of "
                f"{', '.join(VOCABULARY_FILES)}; name the folder of {name}"
            )
        return fetch_tokenizer(self.name, name, self._cache_dir)

    def _config_folder(self) -> str:
        """Folder of the json that the model was read of; "" for open_clip's own."""
        if self.name.startswith(HUB):
            repository = self.name.removeprefix(HUB)
            file = fetch_config(self.name, repository, CONFIG_FILE, self._cache_dir)
            return str(file.parent)
        return os.path.dirname(self.name) if self.name.endswith(".json") else ""

    @cached_property
    def transformer_file(self) -> Path | None:
        """The ``config.json`` of a text tower of transformers; None for open_clip's own.

        Raises:
            ConfigError: it is not where MODEL.CLIP.TOKENIZER says.
            CheckpointError: it is on the hub, neither cached nor within reach.
            NotInstalledError: transformers is missing.
        """
        name = self.config["text_cfg"].get("hf_model_name")
        if not name:
            return None
        check_transformers(f"MODEL.CLIP.NAME {self.name}")
        if not self._tokenizer_folder:
            setting = "MODEL.CLIP.TOKENIZER to its folder, with the tokenizer's files in it"
            label = f"{self.name}: its text tower {name} (hf_model_name)"
            return fetch_config(label, name, "config.json", self._cache_dir, setting)
        file = Path(self._tokenizer_folder) / "config.json"
        if not file.is_file():
            raise ConfigError(
                f"MODEL.CLIP.TOKENIZER: found no config.json in {file.parent}, expected that of "
                f"the text tower {name} beside the tokenizer; put it there"
            )
        return file

    @property
    def local_tokenizer(self) -> str:
        """The folder of this machine that has the tokenizer; "" if its name is public."""
        beside = self._config_folder() if self.name.endswith(".json") else ""
        own = self._tokenizer_folder or beside
        return own if own and self.tokenizer_folder == Path(own) else ""

    @property
    def text_files(self) -> list[Path]:
        """Files of a tokenizer and text tower of transformers; [] with CLIP's own tokenizer."""
        folder, config = self.tokenizer_folder, self.transformer_file
        files = [] if folder is None else [folder / name for name in TOKENIZER_FILES]
        return [file for file in files if file.is_file()] + ([config] if config else [])

    @cached_property
    def transformer_config(self) -> dict[str, Any]:
        """Content of `transformer_file`; {} for open_clip's own text towers."""
        return check_transformer(self.transformer_file) if self.transformer_file else {}

    @property
    def has_clip_text(self) -> bool:
        """Whether texts are read as CLIP's: byte pairs in lower case, causal, at the end token."""
        text = self.config["text_cfg"]
        options = {"bpe_path", "clean"} >= (text.get("tokenizer_kwargs") or {}).keys()
        others = ("hf_model_name", "hf_tokenizer_name", "embed_cls", "no_causal_mask")
        return (
            options
            and (text.get("tokenizer_kwargs") or {}).get("clean", "lower") == "lower"
            and text.get("pool_type", "argmax") == "argmax"
            and not any(text.get(key) for key in others)
        )

    @property
    def text_content(self) -> list[Any]:
        """What class vectors depend on beside weights and config; [] with CLIP's own merges."""
        if self._is_of_transformers:
            return [self.tokenizer.fingerprint, self.transformer_config]
        merges = self._own_merges
        return [] if merges is None else [hashlib.sha256(merges).hexdigest()]

    @property
    def text_sha256(self) -> str:
        """Checksum (hex) of `text_content` with a tokenizer of transformers, "" of byte pairs."""
        if not self._is_of_transformers:
            return ""
        return hashlib.sha256(json_text(self.text_content, sort_keys=True).encode()).hexdigest()

    @property
    def _is_of_transformers(self) -> bool:
        text = self.config["text_cfg"]
        return bool(text.get("hf_tokenizer_name") or text.get("hf_model_name"))

    def merges(self) -> bytes:
        """Return the gzipped merges of the tokenizer, the model's own or CLIP's.

        Raises:
            ConfigError: the file is missing or cannot be read.
        """
        from tagclip.modeling.clip.library import open_clip

        return self._own_merges or Path(open_clip.tokenizer.default_bpe()).read_bytes()

    @cached_property
    def _own_merges(self) -> bytes | None:
        """The gzipped merges that the model json names, read once; None means CLIP's own."""
        path = merges_file(self.name, self.config)
        if path is None:
            return None
        if not self._merges and not path.is_file():
            raise ConfigError(f"{self.name}: its tokenizer file {path} is missing; restore it")
        try:
            content = b64decode(self._merges, validate=True) if self._merges else path.read_bytes()
            read_gzip(BytesIO(content), MERGES_BYTES).decode("utf-8")
        except (OSError, ValueError) as error:
            if self._merges:
                raise ConfigError(
                    f"MODEL.CLIP.MERGES: cannot be read ({error}), expected a gzipped list of "
                    f"merges in base64; leave it empty to read {path}"
                ) from error
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
        if config["text_cfg"].get("hf_model_name"):
            # As in open_clip.
            _ = self.transformer_config
            own = {
                "hf_model_name": str(self.transformer_file.parent),
                "hf_model_pretrained": False,
            }
            config |= {"custom_text": True, "text_cfg": config["text_cfg"] | own}
        keys = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
        arguments = {key: config[key] for key in keys if key in config}
        is_custom = config.get("custom_text") or "multimodal_cfg" in config
        kind = open_clip.CustomTextCLIP if is_custom else open_clip.CLIP
        try:
            return kind(**arguments)
        # What open_clip's and transformers' modules raise on options that they do not take.
        except Exception as error:
            raise ConfigError(
                f"MODEL.CLIP.NAME {self.name}: open_clip cannot build it ({error_text(error)}); "
                "compare its json with open_clip/model_configs"
            ) from error

    def state_dict(self) -> dict[str, Tensor]:
        """Read all weights under open_clip's names, float32 on the CPU.

        Raises:
            CheckpointError: see `read_clip_weights`, or the file fails the checksum, or is not the
                one any more that `sha256` is of.
            ConfigError: they were trained with another activation than the model's.
        """
        if self.path is None:
            return self._random_state()
        sha256 = self.sha256
        confirmed = sha256 if self._expected_sha256 else ""
        weights = read_clip_weights(self.path, confirmed_sha256=confirmed)
        # Each tower reads the file for itself, at any time: those of two models go together badly.
        if (found := weights_sha256(self.path)) != sha256:
            raise CheckpointError(
                f"{self.path}: found other CLIP weights than at the start (sha256 {found}), "
                f"expected the same ({sha256}); put that file back, or start again"
            )
        self._check_quick_gelu(weights.quick_gelu)
        return weights.state

    def _random_state(self) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(_RANDOM_SEED)
            state = self._build().state_dict()
        # As of a file: transformers may take another dtype of its config.
        return to_open_clip(state)


def _timm_width(tower: nn.Module) -> int:
    """Channels of the vectors of open_clip's ``TimmModel``."""
    layers = [module for module in tower.head.modules() if isinstance(module, nn.Linear)]
    if not layers:
        head = tower.trunk.get_classifier()
        layers = [head] if isinstance(head, nn.Linear) else []
    return layers[-1].out_features if layers else tower.trunk.num_features
