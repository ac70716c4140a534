"""The config reference: every key that TagCLIP adds to detectron2, and what it may be.

`SECTIONS` also lists keys of detectron2 that are read here with a restriction; all others are
documented in detectron2/config/defaults.py. docs/config.md is generated from this table:
``python -m tagclip.config.reference > docs/config.md``.
"""

from __future__ import annotations

from copy import copy
from functools import partial

from detectron2.config import CfgNode as CN

from tagclip.config.keys import DETECTRON2, Key

__all__ = ["KEYS", "SECTIONS", "add_tagclip_config"]

# Side of an image in pixels.
_SIDE = 10**6

_share = partial(Key, low=0, high=1)
_at_least_0 = partial(Key, low=0)
_at_least_1 = partial(Key, low=1)
_crop = partial(Key, when="INPUT.CROP.ENABLED")
_views = partial(Key, when="TEST.AUG.ENABLED")

# A row is a line of key, default and restrictions, and a line of text: see `Key`.
# fmt: off
SECTIONS: dict[str, tuple[Key, ...]] = {
    "Run": (
        Key("PROJECTS", [], kind=list[str],
            text="Projects (names of `tagclip.projects`) to import before anything is built."),
        Key("SEED", 0, low=-1, high=2**32 - 1,
            text="Seed of everything random. -1 draws one, which is logged and stored with the "
            "results."),
        Key("CONFIG_NAME", "",
            text="Name of the config in results; empty is that of the yaml file."),
    ),
    "Datasets": (
        Key("DATASETS.TRAIN", DETECTRON2, kind=list[str],
            text="Names of the datasets that the model learns from; they share a class list."),
        Key("DATASETS.TEST", DETECTRON2, kind=list[str],
            text="Names of the datasets that are evaluated, each with its own class list."),
        Key("DATASETS.ZERO_SHOT.SETTING", "inductive",
            choices=("inductive", "transductive", "supervised"),
            text="inductive: unseen labels never reach the model; transductive: nor here, but "
            "unseen classes are asked and get pseudo-labels (SELF_TRAINING); supervised: every "
            "class has labels."),
        Key("DATASETS.ZERO_SHOT.SPLIT", "",
            text="Name of a split in the vocabulary json; empty takes its default_split."),
        Key("DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", False,
            text='Lets TRUSTY.TARGET and SELF_TRAINING.REGION "novel" read the positions of '
            "unseen pixels, which breaks the protocol, and the log say how many pseudo-labels are "
            "on such pixels."),
        Key("DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES", False,
            text="Trains without the images that show any pixel of an unseen class."),
        Key("DATASETS.ON_BAD_SAMPLE", "raise", choices=("raise", "skip"),
            text="Images without label, labels without image: raise; or skip, which goes on "
            "without them, and without images and labels that cannot be read, and says how many."),
        Key("DATASETS.FOLDER_DATASETS", [],
            text="Own data: a list of {name, images, labels, vocabulary} (folders and a vocabulary "
            "json; also image_list), each registered under its name for DATASETS.TRAIN and TEST."),
        Key("DATALOADER.NUM_WORKERS", DETECTRON2, kind=int, low=0, high=1024,
            text="Processes that read images, beside each that trains or evaluates; 0: none."),
    ),
    "Images": (
        Key("INPUT.FORMAT", "RGB", choices=("RGB", "BGR"),
            text="Order of the channels; CLIP and the class colours are RGB."),
        Key("INPUT.MIN_SIZE_TRAIN", DETECTRON2, kind=list[int], length="some", low=1,
            high=_SIDE,
            text="Bounds of the short side of training images in pixels; one is drawn."),
        Key("INPUT.MIN_SIZE_TRAIN_SAMPLING", DETECTRON2, choices=("choice", "range"),
            text="choice: one of MIN_SIZE_TRAIN; range: any number from their lowest to highest."),
        Key("INPUT.MAX_SIZE_TRAIN", DETECTRON2, kind=int, low=0, high=_SIDE,
            text="Bound of the long side of training images in pixels; 0: none."),
        Key("INPUT.SCALE_RANGE", [0.5, 2.0], length=2, above=0, high=1000,
            ascending=True,
            text="Training images are resized by a factor drawn from this range, times "
            "MIN/MAX_SIZE_TRAIN."),
        Key("INPUT.CROP.ENABLED", DETECTRON2, kind=bool,
            text="Whether training images are cropped."),
        _crop("INPUT.CROP.TYPE", DETECTRON2, choices=("absolute",),
            text="The size of a crop is given in pixels."),
        _crop("INPUT.CROP.SIZE", DETECTRON2, kind=list[int], length=2, low=1, high=_SIDE,
            text="Height and width of a crop in pixels; a shorter side of an image stays whole."),
        Key("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.75, above=0, high=1,
            text="A crop is redrawn (10 times at most) while one class covers more than this share "
            "of it."),
        Key("INPUT.RANDOM_FLIP", DETECTRON2, choices=("none", "horizontal", "vertical"),
            text="Training images are flipped this way, one in two at random."),
        Key("INPUT.COLOR_AUG_SSD", True,
            text="Random brightness, contrast, saturation and hue in training (SSD's photometric "
            "distortion)."),
        Key("INPUT.MAX_PIXELS", 64_000_000, low=0, high=10**15,
            text="Images with more pixels than this are refused before they are decoded; 0 refuses "
            "none."),
        Key("INPUT.RESIZE", "cv2", choices=("cv2", "pil"),
            text="cv2: bilinear without antialiasing, as the released pipeline; pil: detectron2's "
            "own resize."),
        Key("INPUT.MIN_SIZE_TEST", DETECTRON2, kind=int, low=0, high=_SIDE,
            text="Short side of test images in pixels; 0 leaves them as they are."),
        Key("INPUT.MAX_SIZE_TEST", DETECTRON2, kind=int, low=0, high=_SIDE,
            text="Bound of the long side of test images in pixels; 0: none."),
    ),
    "Model": (
        Key("MODEL.META_ARCHITECTURE", "TagCLIP",
            text="Name of the model's class in detectron2's registry."),
        Key("MODEL.BACKBONE.NAME", "CLIPViT",
            text="Name of the image encoder in detectron2's registry."),
        Key("MODEL.SEM_SEG_HEAD.NAME", "TagCLIPHead",
            text="Name of the head in detectron2's registry."),
        Key("MODEL.BACKBONE.CHECKPOINT", False,
            text="Recompute each block in the backward pass: a third more time, a fraction of the "
            "memory."),
        Key("MODEL.COMPILE", False,
            text="torch.compile of the ViT's blocks and the loss: minutes at first, faster "
            "afterwards."),
        Key("MODEL.DEVICE", DETECTRON2, kind=str, text="Where the model is: cuda or cpu."),
        Key("MODEL.PIXEL_MEAN", DETECTRON2, kind=list[float], length=3,
            text="Subtracted from the channels of an image, 0 to 255, in INPUT.FORMAT's order."),
        Key("MODEL.PIXEL_STD", DETECTRON2, kind=list[float], length=3, above=0,
            text="Divides the channels of an image afterwards."),
    ),
    "CLIP": (
        Key("MODEL.CLIP.NAME", "ViT-B-16-quickgelu",
            text="Name of an open_clip ViT with a class token, or the path of an open_clip model "
            "json."),
        Key("MODEL.CLIP.PRETRAINED", "openai",
            text="open_clip tag, path of a weight file or Hugging Face folder, or empty for random "
            "weights (tests)."),
        Key("MODEL.CLIP.SHA256", "",
            text="Expected sha256 of the weight file; empty accepts any and records what was "
            "found. A TorchScript archive that is not one of OpenAI's is read only if its checksum "
            "stands here."),
        Key("MODEL.CLIP.CACHE_DIR", "",
            text="Folder for downloaded CLIP weights; empty is open_clip's default."),
        Key("MODEL.CLIP.POS_EMBED_RESIZE", "bilinear", choices=("bilinear", "bicubic"),
            text="Resize of the position table: bilinear (released code) or bicubic (open_clip)."),
        Key("MODEL.CLIP.DOUBLE_CLS_EMBED", True,
            text="True counts the class embedding twice, as the released code; False is plain "
            "CLIP."),
        Key("MODEL.CLIP.TEMPLATES", "single", kind=str | list[str], length="some",
            text="Name of a set in prompt_templates.json, or a list of templates with one {} "
            "each."),
        Key("MODEL.CLIP.SYNONYMS", "mean", choices=("mean", "max"),
            text="Prompt names of a class: mean of their vectors; max: the highest of their "
            "logits."),
        _at_least_1("MODEL.CLIP.TEXT_BATCH", 256,
            text="Prompts per text forward (time, memory and rounding)."),
        Key("MODEL.CLIP.TEXT_CACHE", "",
            text="Folder of encoded class vectors shared between runs; empty keeps them in memory "
            "only."),
        Key("MODEL.CLIP.PROMPT.NUM_TOKENS", 10, low=0, high=10_000,
            text="Learned prompt tokens per layer; 0 switches deep prompts off."),
        _at_least_0("MODEL.CLIP.PROMPT.DEPTH", 0,
            text="Layers that get prompts, counted from the input; 0 means all."),
        _share("MODEL.CLIP.PROMPT.DROPOUT", 0.1, text="Dropout on the projected prompts."),
        Key("MODEL.CLIP.PROMPT.POST_NORM", True,
            text="Trainable LayerNorm on all tokens before CLIP's ln_post."),
    ),
    "Decoder": (
        Key("MODEL.TAGCLIP.RELATION", "cls_text", choices=("cls_text", "none"),
            text="cls_text: [class vector * image vector ; class vector]; none: the class vector "
            "alone."),
        Key("MODEL.TAGCLIP.LAYERS", "ann", letters="an",
            text="One letter per decoder layer: a = with self-attention among the classes, "
            "n = without."),
        _at_least_1("MODEL.TAGCLIP.NUM_HEADS", 8,
            text="Attention heads of the decoder; divides the CLIP embedding size."),
        _share("MODEL.TAGCLIP.DROPOUT", 0.1, text="Dropout inside the decoder."),
        Key("MODEL.TAGCLIP.FEATURE_SCALE", 1.0,
            text="Multiplies class, image and patch vectors (not the trusty token) before the "
            "decoder."),
    ),
    "Trusty map": (
        Key("MODEL.TAGCLIP.TRUSTY.ENABLED", True,
            text="Whether something learned says which pixels belong to seen classes: the trusty "
            "map."),
        Key("MODEL.TAGCLIP.TRUSTY.KIND", "token", choices=("token", "conv"),
            text="token: one more query of the decoder (the paper); conv: a convolutional head of "
            "its own."),
        _at_least_1("MODEL.TAGCLIP.TRUSTY.CONV.CHANNELS", 48, high=100_000,
            text="conv: channels of the hidden layers."),
        _share("MODEL.TAGCLIP.TRUSTY.CONV.DROPOUT", 0.1,
            text="conv: dropout before the last layer."),
        _at_least_0("MODEL.TAGCLIP.TRUSTY.CONV.BASE_LR", 3e-3,
            text="conv: learning rate at the start; it falls linearly to 0."),
        _at_least_0("MODEL.TAGCLIP.TRUSTY.CONV.WEIGHT_DECAY", 0.05,
            text="conv: weight decay of its AdamW."),
        _at_least_1("MODEL.TAGCLIP.TRUSTY.CONV.STEPS", 1,
            text="conv: its steps per training iteration; a short schedule needs several."),
        _at_least_1("MODEL.TAGCLIP.TRUSTY.CONV.REPLAY_BATCHES", 1,
            text="conv: how many batches it learns from, kept in half precision and in "
            "checkpoints; 1: the current one only, which is not kept."),
        Key("MODEL.TAGCLIP.TRUSTY.TARGET", "seen", choices=("seen", "novel"),
            text="seen: 1 on seen-class pixels, reads no unseen label; novel: 1 on unseen-class "
            "pixels."),
        Key("MODEL.TAGCLIP.TRUSTY.LOSS", "focal", choices=("focal", "dice"),
            text="token: what its term of the loss is, focal (released code) or dice."),
    ),
    "Loss": (
        _at_least_0("MODEL.TAGCLIP.LOSS.MASK", 20.0, text="Weight of the focal term."),
        _at_least_0("MODEL.TAGCLIP.LOSS.DICE", 1.0, text="Weight of the Dice term."),
        _at_least_0("MODEL.TAGCLIP.LOSS.TRUSTY", 10.0, text="Weight of the trusty term."),
        _share("MODEL.TAGCLIP.LOSS.FOCAL_ALPHA", 0.25,
            text="Focal loss: weight of positives; negatives weigh 1 - alpha."),
        _at_least_0("MODEL.TAGCLIP.LOSS.FOCAL_GAMMA", 2.0, text="Focal loss: exponent."),
        Key("MODEL.TAGCLIP.LOSS.IGNORE_AS_NEGATIVE", True,
            text="True: ignored and padded pixels are negatives of every class (released code); "
            "False: none."),
        _at_least_1("MODEL.TAGCLIP.LOSS.STRIDE", 1,
            text="Side of the label grid on which the loss is computed, in pixels per label (1: "
            "every pixel)."),
        _at_least_0("MODEL.TAGCLIP.LOSS.WORKSPACE_MIB", 256,
            text="Memory for full-resolution planes; the classes per chunk follow from it."),
    ),
    "Inference": (
        Key("MODEL.TAGCLIP.TEST.GATE", "both", choices=("none", "seen", "unseen", "both"),
            text="Which scores the trusty map multiplies."),
        Key("MODEL.TAGCLIP.TEST.GATE_FORM", "product", choices=("product", "additive", "lift"),
            text="product: that (the paper); additive, lift: the map's logit is added to unseen "
            "scores instead, clipped to [-4, 4] or [0, 4]."),
        Key("MODEL.TAGCLIP.TEST.GATE_SCALE", 0.5,
            text="additive, lift: weight of half that logit."),
        Key("MODEL.TAGCLIP.TEST.SEEN_BIAS", 0.1,
            text="Subtracted from the scores of seen classes."),
        Key("MODEL.TAGCLIP.TEST.BIAS_AFTER_GATE", False,
            text="False: bias, then gate (released code); True: gate, then bias."),
        Key("MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES", "match", choices=("match", "seen", "unseen"),
            text="Classes of a vocabulary without a split: match (seen if in training), seen or "
            "unseen."),
        Key("MODEL.TAGCLIP.TEST.MODE", "slide", choices=("slide", "whole"),
            text="slide: overlapping windows; whole: one forward pass of the whole image."),
        _at_least_1("MODEL.TAGCLIP.TEST.WINDOW", 512,
            text="Side of the windows, in pixels of the resized image."),
        _at_least_1("MODEL.TAGCLIP.TEST.STRIDE", 426,
            text="Step of the windows, in pixels of the resized image; at most WINDOW."),
        _at_least_1("MODEL.TAGCLIP.TEST.WINDOW_BATCH", 4,
            text="Windows per forward pass (time and memory only, never the result)."),
        _at_least_0("MODEL.TAGCLIP.TEST.WORKSPACE_MIB", 256,
            text="Memory for full-resolution score planes; the classes per chunk follow from it."),
        Key("MODEL.TAGCLIP.TEST.OUTPUT", "labels", choices=("scores", "labels"),
            text="scores: (K, H, W) per image; labels: (H, W) labels and their scores."),
        _share("MODEL.TAGCLIP.TEST.BACKGROUND_THRESHOLD", 0.0,
            text='Pixels whose best score, after gate and bias, is below are -1, "other" (labels); '
            "0 is off."),
        Key("TEST.AUG.ENABLED", DETECTRON2, kind=bool,
            text="Averages the scores of several views of an image instead of INPUT's one."),
        _views("TEST.AUG.MIN_SIZES", DETECTRON2, kind=list[int], length="some", low=1,
            high=_SIDE,
            text="Short sides of the views in pixels."),
        _views("TEST.AUG.MAX_SIZE", DETECTRON2, kind=int, low=0, high=_SIDE,
            text="Bound of their long side in pixels; 0: none."),
        _views("TEST.AUG.FLIP", DETECTRON2, kind=bool, text="Adds the mirror image of each view."),
    ),
    "Self-training": (
        Key("MODEL.TAGCLIP.SELF_TRAINING.REGION", "unlabeled", choices=("unlabeled", "novel"),
            text="Which pixels get pseudo-labels in the transductive setting: unlabeled: ignored "
            "ones on which an unseen class wins; novel: those whose true class is unseen, as in "
            "ZegCLIP."),
        _share("MODEL.TAGCLIP.SELF_TRAINING.THRESHOLD", 0.3,
            text="Least score, before the gate, of a pseudo-label (unlabeled)."),
        Key("MODEL.TAGCLIP.SELF_TRAINING.GATE", True,
            text="True: the trusty map multiplies seen and unseen scores before they are compared "
            "(unlabeled)."),
    ),
    "Optimization": (
        Key("SOLVER.OPTIMIZER", "ADAMW", choices=("ADAMW", "SGD"),
            text="Which optimizer learns everything but a convolutional trusty head."),
        Key("SOLVER.ADAM_BETAS", [0.9, 0.999], length=2, low=0, below=1,
            text="AdamW's decay of the gradient's mean and square."),
        _at_least_0("SOLVER.MOMENTUM", DETECTRON2, kind=float, text="SGD's momentum."),
        Key("SOLVER.NESTEROV", DETECTRON2, kind=bool,
            text="SGD with Nesterov's momentum, which MOMENTUM 0 has not."),
        _at_least_1("SOLVER.MAX_ITER", DETECTRON2, kind=int, text="Training iterations."),
        _at_least_1("SOLVER.IMS_PER_BATCH", DETECTRON2, kind=int,
            text="Images per iteration, in all processes together, which share them equally."),
        _at_least_0("SOLVER.REFERENCE_WORLD_SIZE", DETECTRON2, kind=int,
            text="Number of processes that the config is made for, a divisor of IMS_PER_BATCH: "
            "with another one, batch, learning rate and schedule are scaled; 0: never."),
        _at_least_1("SOLVER.CHECKPOINT_PERIOD", DETECTRON2, kind=int,
            text="Iterations from one checkpoint to the next."),
        _at_least_0("SOLVER.BASE_LR", 2e-4, text="Learning rate, after the warm-up."),
        _at_least_0("SOLVER.PROMPT_LR_FACTOR", 1.0,
            text="Multiplies the learning rate of the deep prompts."),
        _at_least_0("SOLVER.BIAS_LR_FACTOR", DETECTRON2, kind=float,
            text="Multiplies the learning rate of biases."),
        _at_least_0("SOLVER.MIN_LR", 1e-6,
            text="Floor of the schedule, an absolute learning rate."),
        Key("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", choices=("WarmupPolyLR",),
            text="Polynomial decay after a linear warm-up."),
        _at_least_0("SOLVER.POLY_LR_POWER", 0.9, text="Exponent of the polynomial decay."),
        _at_least_0("SOLVER.WARMUP_ITERS", 1500,
            text="Length of the warm-up in iterations; 0 leaves it out."),
        _at_least_0("SOLVER.WARMUP_FACTOR", 1e-6,
            text="Multiplies the learning rate of the first iteration."),
        _at_least_0("SOLVER.WEIGHT_DECAY", 0.01, text="Weight decay of matrices and tokens."),
        _at_least_0("SOLVER.WEIGHT_DECAY_NORM", 0.01,
            text="Weight decay of normalisation layers. The released rule meant 0 but never "
            "applied."),
        _at_least_0("SOLVER.WEIGHT_DECAY_BIAS", DETECTRON2, kind=float | None,
            text="Weight decay of biases; null is WEIGHT_DECAY."),
        Key("SOLVER.CLIP_GRADIENTS.ENABLED", DETECTRON2, kind=bool,
            text="Whether large gradients are cut."),
        Key("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", DETECTRON2, choices=("value", "norm"),
            when="SOLVER.CLIP_GRADIENTS.ENABLED",
            text="value: each number; norm: the length of each tensor."),
        _at_least_0("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", DETECTRON2, kind=float,
            when="SOLVER.CLIP_GRADIENTS.ENABLED",
            text="The most that is left."),
        Key("SOLVER.AMP.ENABLED", DETECTRON2, kind=bool,
            text="Whether training computes in half precision where that is safe."),
        Key("SOLVER.AMP.DTYPE", "bfloat16", choices=("bfloat16", "float16"),
            text="Which half precision, under SOLVER.AMP.ENABLED."),
    ),
    "Evaluation": (
        Key("TEST.ALLOW_PARTIAL_WEIGHTS", False,
            text="True evaluates although trainable tensors are missing or do not fit."),
        Key("TEST.SAVE_PREDICTIONS", "", choices=("", "png", "json"),
            text="Written to inference/<dataset>/predictions: png: indices, trusty map; json: RLE; "
            "empty: none."),
        Key("TEST.SAVE_LOGITS", False,
            text="Writes low-resolution logits to inference/<dataset>/logits/, for "
            "tools/analyze_predictions.py (2 bytes per class, patch and window: 0.35 MB per window "
            "of 32 x 32 patches and 171 classes)."),
    ),
}
# fmt: on
KEYS = tuple(key for keys in SECTIONS.values() for key in keys)


def add_tagclip_config(cfg: CN) -> None:
    """Add TagCLIP's keys, with their defaults, to a detectron2 config (in place)."""
    for key in KEYS:
        if key.default is not DETECTRON2:
            node = cfg
            for section in key.path[:-1]:
                node = node.setdefault(section, CN())
            node[key.path[-1]] = copy(key.default)
