"""Where CLIP comes from: an open_clip model name or json, and a tag or file of weights."""

from __future__ import annotations

import hashlib
import json
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from tagclip.errors import CheckpointError, ConfigError

__all__ = ["CLIPSource"]

_RANDOM_SEED = 0
# Vision options of open_clip whose towers are built differently from CLIPViT.
_UNSUPPORTED_VISION = (
    "timm_model_name",
    "ls_init_value",
    "attentional_pool",
    "final_ln_after_pool",
    "block_type",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
    "act_kwargs",
    "norm_kwargs",
)


class CLIPSource:
    """Lazy access to a CLIP model's config, weights and tokenizer; nothing is read before use."""

    def __init__(
        self, name: str, pretrained: str = "", *, cache_dir: str = "", sha256: str = ""
    ) -> None:
        """Name a model.

        Args:
            name: open_clip model name, or path of an open_clip model json. Such a json may hold
                ``"tokenizer": {"bpe_path": FILE}``, a merges file beside it.
            pretrained: open_clip tag, path of a ``.pt``, ``.bin`` or ``.safetensors`` state dict,
                or "" for random weights (always the same ones).
            cache_dir: folder for downloads; "" is open_clip's default.
            sha256: expected checksum of the weight file; "" accepts any.
        """
        self.name, self.pretrained = name, pretrained
        self._cache_dir, self._expected_sha256 = cache_dir, sha256.lower()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> CLIPSource:
        """Read ``MODEL.CLIP``."""
        clip = cfg.MODEL.CLIP
        return cls(clip.NAME, clip.PRETRAINED, cache_dir=clip.CACHE_DIR, sha256=clip.SHA256)

    @cached_property
    def config(self) -> dict[str, Any]:
        """open_clip's model config: ``embed_dim``, ``vision_cfg``, ``text_cfg``, ...

        Raises:
            ConfigError: open_clip does not know the name, or the json is missing or incomplete.
        """
        import open_clip

        if not self.name.endswith(".json"):
            config = open_clip.get_model_config(self.name)
            if config is None:
                raise ConfigError(
                    f"MODEL.CLIP.NAME: open_clip has no model {self.name!r}; expected a name that "
                    "open_clip.list_models() gives, or the path of a model json"
                )
            return config
        path = Path(self.name)
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"MODEL.CLIP.NAME: cannot read the model json {path} ({error}); check the path"
            ) from error
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config)
        if missing:
            raise ConfigError(
                f"{path}: found no {', '.join(sorted(missing))}, which an open_clip model json "
                "holds; compare with open_clip/model_configs"
            )
        return config

    @property
    def quick_gelu(self) -> bool:
        """Whether the towers use OpenAI's activation."""
        return bool(self.config.get("quick_gelu", False))

    @cached_property
    def path(self) -> Path | None:
        """The weight file, downloaded if need be; None with random weights.

        Raises:
            CheckpointError: there is no such file or tag, or it cannot be downloaded.
            ConfigError: the tag was trained with another activation than the model's.
        """
        if not self.pretrained:
            return None
        path = Path(self.pretrained).expanduser()
        if path.is_file():
            return path
        if path.suffix or len(path.parts) > 1:
            raise CheckpointError(
                f"{path}: no such CLIP weight file; check MODEL.CLIP.PRETRAINED, "
                "or name an open_clip tag"
            )
        return self._download()

    def _download(self) -> Path:
        import open_clip

        tag = open_clip.get_pretrained_cfg(self.name, self.pretrained)
        if not tag:
            known = ", ".join(open_clip.list_pretrained_tags_by_model(self.name)) or "none"
            raise CheckpointError(
                f"MODEL.CLIP.PRETRAINED: found {self.pretrained!r}, which is neither a file nor "
                f"a tag of {self.name}; its tags: {known}"
            )
        if bool(tag.get("quick_gelu", False)) != self.quick_gelu:
            needed = "with" if tag.get("quick_gelu", False) else "without"
            raise ConfigError(
                f"MODEL.CLIP.NAME {self.name}: the weights {self.pretrained!r} were trained "
                f"{needed} QuickGELU, expected a model {needed} it; "
                f"{'add' if needed == 'with' else 'remove'} the suffix -quickgelu"
            )
        try:
            return Path(open_clip.download_pretrained(tag, cache_dir=self._cache_dir or None))
        except (OSError, RuntimeError, ValueError) as error:
            where = tag.get("hf_hub") or tag.get("url")
            raise CheckpointError(
                f"CLIP weights {self.name}/{self.pretrained}: cannot download {where} "
                f"({type(error).__name__}); once online they are cached, or give the path of the "
                "file as MODEL.CLIP.PRETRAINED"
            ) from error

    @cached_property
    def sha256(self) -> str:
        """Checksum of the weight file (hex); with random weights, of the config they follow.

        Raises:
            CheckpointError: it is not the expected one.
        """
        if self.path is None:
            found = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()
        else:
            with self.path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        if self._expected_sha256 not in ("", found):
            raise CheckpointError(
                f"{self.path}: sha256 is {found}, expected {self._expected_sha256}; the file is "
                "damaged or another one: remove it to download it again, or mend MODEL.CLIP.SHA256"
            )
        return found

    def vision_config(self) -> dict[str, Any]:
        """Return the sizes of the vision tower as keyword arguments of `CLIPViT`.

        Raises:
            ConfigError: it is not a ViT with a class token.
        """
        vision = self.config["vision_cfg"]
        unsupported = [key for key in _UNSUPPORTED_VISION if vision.get(key)]
        if vision.get("pool_type", "tok") != "tok":
            unsupported.append(f"pool_type {vision['pool_type']}")
        if vision.get("pos_embed_type", "learnable") != "learnable":
            unsupported.append(f"pos_embed_type {vision['pos_embed_type']}")
        if not isinstance(vision.get("layers", 12), int):
            unsupported.append("a ResNet")
        if unsupported:
            raise ConfigError(
                f"MODEL.CLIP.NAME {self.name}: found {', '.join(unsupported)}, expected a plain "
                "ViT with a class token such as ViT-B-16-quickgelu"
            )
        width, patch = vision.get("width", 768), vision.get("patch_size", 16)
        size = vision.get("image_size", 224)
        height, image_width = (size, size) if isinstance(size, int) else size
        return {
            "width": width,
            "layers": vision.get("layers", 12),
            "heads": width // vision.get("head_width", 64),
            "hidden": int(width * vision.get("mlp_ratio", 4.0)),
            "patch_size": patch,
            "grid_size": (height // patch, image_width // patch),
            "embed_dim": self.config["embed_dim"],
            "quick_gelu": self.quick_gelu,
            "ln_pre": not vision.get("no_ln_pre", False),
        }

    def vision_state(self) -> dict[str, Tensor]:
        """Return the tensors under ``visual.`` without that prefix, float32 on the CPU."""
        state = self.state_dict()
        return {n.removeprefix("visual."): t for n, t in state.items() if n.startswith("visual.")}

    def text_tower(self) -> nn.Module:
        """Build open_clip's frozen text tower, float32 on the CPU.

        Raises:
            ConfigError: it is no CLIP text transformer.
            CheckpointError: the weights do not fit it.
        """
        state = self.state_dict()
        model = self._build("meta")
        state = {n: t for n, t in state.items() if not n.startswith("visual.")}
        del model.visual
        missing, unknown = model.load_state_dict(state, strict=False, assign=True)
        missing = [name for name in missing if not name.startswith("logit_")]
        if missing or unknown:
            raise CheckpointError(
                f"{self.path or self.name}: CLIP's text weights do not fit {self.name}: "
                f"missing {missing[:3]}, unknown {unknown[:3]}; check MODEL.CLIP.NAME"
            )
        tower = getattr(model, "text", model)
        pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", ""))
        if pool != "argmax":
            raise ConfigError(
                f"MODEL.CLIP.NAME {self.name}: its text tower pools by {pool!r}, expected "
                "'argmax' (the end-of-text token); choose another CLIP"
            )
        # Neither is used, and neither has memory: the mask is made for each length.
        tower.attn_mask = tower.logit_scale = tower.logit_bias = None
        return tower.eval().requires_grad_(False)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text from start to end token, unpadded and untruncated."""
        tokenizer = self._tokenizer
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
        return [[start, *tokenizer.encode(text), end] for text in texts]

    def decode(self, ids: list[int]) -> str:
        """Return the text that token ids stand for."""
        return self._tokenizer.decode(ids)

    @property
    def context_length(self) -> int:
        """Most tokens of a text, start and end included."""
        return self.config["text_cfg"].get("context_length", 77)

    @cached_property
    def _tokenizer(self) -> Any:
        from open_clip import SimpleTokenizer

        if self.config["text_cfg"].get("hf_tokenizer_name"):
            raise ConfigError(
                f"MODEL.CLIP.NAME {self.name}: needs a Hugging Face tokenizer, expected CLIP's "
                "own; choose another CLIP"
            )
        merges = self.config.get("tokenizer", {}).get("bpe_path")
        if merges is None:
            return SimpleTokenizer()
        path = Path(self.name).parent / merges
        if not path.is_file():
            raise ConfigError(f"{self.name}: its tokenizer file {path} is missing; restore it")
        return SimpleTokenizer(bpe_path=str(path))

    def _build(self, device: str) -> nn.Module:
        """Build open_clip's model; on "meta" it has no memory for its weights."""
        from open_clip.model import CLIP, CustomTextCLIP

        text = self.config["text_cfg"]
        custom = self.config.get("custom_text", False)
        keys = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
        arguments = {key: self.config[key] for key in keys if key in self.config}
        if text.get("hf_model_name"):
            raise ConfigError(
                f"MODEL.CLIP.NAME {self.name}: its text tower is a Hugging Face model, "
                "expected CLIP's own transformer; choose another CLIP"
            )
        with torch.device(device):
            return (CustomTextCLIP if custom else CLIP)(**arguments)

    def state_dict(self) -> dict[str, Tensor]:
        """Read all weights, float32 on the CPU.

        Raises:
            CheckpointError: the file is damaged, of another kind, or fails the checksum.
        """
        if self.path is None:
            return self._random_state()
        assert self.sha256, "reading it compares the checksum"
        state = _read_state(self.path)
        state = state.get("state_dict", state)
        if not any(name.endswith("visual.class_embedding") for name in state):
            raise CheckpointError(
                f"{self.path}: found no visual.class_embedding, expected an open_clip state dict "
                f"of {self.name}; check MODEL.CLIP.PRETRAINED"
            )
        ignored = ("input_resolution", "context_length", "vocab_size")
        state = {name.removeprefix("module."): value for name, value in state.items()}
        return {name: value.float() for name, value in state.items() if name not in ignored}

    def _random_state(self) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_RANDOM_SEED)
            return self._build("cpu").state_dict()


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict without executing anything that the file may hold."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        kind = "a TorchScript archive" if _is_torchscript(path) else "damaged or unsafe"
        raise CheckpointError(
            f"{path}: {kind} ({type(error).__name__}), expected a state dict as .safetensors or "
            f".pt of {path.stat().st_size} readable bytes; download it again or convert it"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: found a {type(state).__name__}, expected a state dict")
    return state


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
