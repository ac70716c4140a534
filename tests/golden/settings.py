"""Groups that need no image: position resize, text tower, tokenizer, optimizer, schedule, names."""

from __future__ import annotations

import torch
from torch import nn

from golden.models import Workspace
from golden.report import Report
from tagclip import load_config
from tagclip.modeling.backbone import CLIPViT
from tagclip.modeling.clip import CLIPSource
from tagclip.modeling.clip.text_bank import TextBank, _unit
from tagclip.modeling.clip.tokenizer import BytePairTokenizer
from tagclip.solver.lr_scheduler import build_lr_scheduler
from tagclip.solver.optimizer import build_optimizer

__all__ = ["check_names", "check_optimizer", "check_positions", "check_schedule", "check_text"]

_OFFICIAL_CLIP = "ViT-B-16-quickgelu"
_RELATIVE = 1e-9


def check_names(space: Workspace, report: Report) -> None:
    """Compare what the converter calls trainable, constant and new."""
    official, golden = space.official, space.golden
    trainable = {name for names in official.sources.values() for name in names}
    trainable |= {name for name, why in official.dropped.items() if "no forward pass" in why}
    listed = golden.data.get("state_dict_trainable", [])
    report.equal("state_dict_trainable", sorted(trainable, key=_place(listed)))
    buffers = [name for name, why in official.dropped.items() if "constant" in why]
    report.equal("state_dict_buffers", buffers)


def _place(listed: list[str]):
    """Sort key: the place in a list, unlisted names last."""
    places = {name: i for i, name in enumerate(listed)}
    return lambda name: (places.get(name, len(places)), name)


@torch.no_grad()
def check_positions(space: Workspace, report: Report) -> None:
    """Compare the position table of a CLIP with another grid."""
    golden, config = space.golden, space.golden.config
    table = golden.data.get("posembed/checkpoint")
    # An input: it stands in the group that it is an input of.
    report.equal("posembed/checkpoint", table)
    clip = space.official.clip | {"visual.positional_embedding": table}
    backbone = CLIPViT(space.config(clip))
    size = config("grid") * config("patch")
    # The patches of a black image are zero: what is left are the positions.
    tokens = backbone.embed(torch.zeros(1, 3, size, size))[0][0]
    tokens[0] -= 2 * backbone.class_embedding
    report.close("posembed/resized", tokens)
    names = [
        name.removeprefix("backbone.")
        for own, names in space.official.sources.items()
        if own.startswith("backbone.")
        for name in names
    ]
    listed = golden.data.get("posembed/missing_keys", [])
    report.equal("posembed/missing_keys", sorted(names, key=_place(listed)))


@torch.no_grad()
def check_text(space: Workspace, report: Report) -> None:
    """Compare the text tower on given tokens, and the tokenizer on given texts."""
    golden = space.golden
    bank = TextBank(space.config())
    tokens = golden.data.get("text/tokens")
    report.equal("text/tokens", tokens)
    rows = [row[: row.argmax() + 1].tolist() for row in tokens]
    # The small model reads these tokens and no texts.
    bank.source.tokenizer, bank.source.tokenize = BytePairTokenizer(), lambda texts: rows
    features = bank._encode_texts([""] * len(rows))
    report.close("text/features", features)
    report.close("text/features_normalized", _unit(features))
    texts = golden.data.get("tokenizer/texts", [])
    report.equal("tokenizer/texts", texts)
    bank = TextBank(source=CLIPSource(_OFFICIAL_CLIP), templates=["{}"])
    padded = torch.zeros(len(texts), bank.source.context_length, dtype=torch.long)
    for row, ids in zip(padded, bank._token_ids(texts), strict=True):
        row[: len(ids)] = torch.tensor(ids)
    report.equal("tokenizer/ids", padded)


def check_optimizer(space: Workspace, model: nn.Module, report: Report) -> None:
    """Compare learning rate and weight decay of every trained parameter."""
    golden = space.golden
    optimizer = build_optimizer(load_config(), model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    settings = {
        source: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
        for source in space.official.sources[names[parameter]]
    }
    listed = golden.data.get("optim/param_names", [])
    unread = [name for name in listed if name in space.official.dropped]
    report.equal("optim/param_names", sorted([*settings, *unread], key=_place(listed)))
    for index, key in enumerate(("optim/lr", "optim/weight_decay")):
        theirs = golden.data.get(key, [])
        # Nothing of ours corresponds to what nothing reads.
        ours = [
            settings[name][index] if name in settings else value
            for name, value in zip(listed, theirs, strict=True)
        ]
        report.close(key, torch.tensor(ours, dtype=torch.float64), _RELATIVE, scale=max(theirs))
    defaults = optimizer.defaults
    report.close("optim/betas", torch.tensor(defaults["betas"], dtype=torch.float64), _RELATIVE)
    report.close("optim/eps", torch.tensor(defaults["eps"], dtype=torch.float64), 1e-12)


def check_schedule(space: Workspace, report: Report) -> None:
    """Compare the learning rate at the listed iterations of every schedule."""
    for key in space.golden.keys(r"lr/\d+k/iters", "lr/20k/iters"):
        name = key.split("/")[1]
        cfg = load_config("", ["SOLVER.MAX_ITER", 1000 * int(name.removesuffix("k"))])
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], cfg.SOLVER.BASE_LR)
        schedule = build_lr_scheduler(cfg, optimizer)
        iterations, values = space.golden.data.get(key, []), []
        report.equal(key, iterations)
        for iteration in iterations:
            schedule.load_state_dict({"last_epoch": iteration})
            values.append(schedule.get_last_lr()[0])
        report.close(
            f"lr/{name}/values",
            torch.tensor(values, dtype=torch.float64),
            _RELATIVE,
            scale=cfg.SOLVER.BASE_LR,
        )
