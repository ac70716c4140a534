"""Every config key that TagCLIP adds to detectron2."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

import tagclip

__all__ = ["add_tagclip_config"]


def add_tagclip_config(cfg: CN) -> None:
    """Add TagCLIP's keys, with their defaults, to a detectron2 config (in place).

    Registers TagCLIP in detectron2 as well, so that the names in the config mean something.
    """
    tagclip.register()
    # Projects (names of `tagclip.projects`) to import before anything is built.
    cfg.PROJECTS = []
    # Seed of everything random. -1 draws one, which is logged and stored with the results.
    cfg.SEED = 0
    # Name of the config in results; "" is that of the yaml file.
    cfg.CONFIG_NAME = ""
    _add_data(cfg)
    _add_clip(cfg)
    _add_tagclip(cfg)
    _add_self_training(cfg)
    _add_solver(cfg)


def _add_data(cfg: CN) -> None:
    # inductive: unseen labels never reach the model | transductive: nor here, but unseen classes
    # are asked and get pseudo-labels (SELF_TRAINING) | supervised: every class has labels.
    cfg.DATASETS.ZERO_SHOT = CN({"SETTING": "inductive"})
    # Name of a split in the vocabulary json; "" takes its default_split.
    cfg.DATASETS.ZERO_SHOT.SPLIT = ""
    # Lets TRUSTY.TARGET and SELF_TRAINING.REGION "novel" read the positions of unseen pixels,
    # which breaks the protocol, and the log say how many pseudo-labels are on such pixels.
    cfg.DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS = False
    # Images without label, labels without image: raise | skip, which goes on without them, and
    # without images and labels that cannot be read, and says how many.
    cfg.DATASETS.ON_BAD_SAMPLE = "raise"
    # Trains without the images that show any pixel of an unseen class.
    cfg.DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES = False
    # Own data: a list of {name, images, labels, vocabulary} (folders and a vocabulary json; also
    # image_list), each registered under its name for DATASETS.TRAIN and TEST.
    cfg.DATASETS.FOLDER_DATASETS = []
    # CLIP and the class colours are RGB.
    cfg.INPUT.FORMAT = "RGB"
    # Training images are resized by a factor drawn from this range, times MIN/MAX_SIZE_TRAIN.
    cfg.INPUT.SCALE_RANGE = [0.5, 2.0]
    # A crop is redrawn (10 times at most) while one class covers more than this share of it.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    # Random brightness, contrast, saturation and hue in training (SSD's photometric distortion).
    cfg.INPUT.COLOR_AUG_SSD = True
    # Images with more pixels than this are refused before they are decoded.
    cfg.INPUT.MAX_PIXELS = 64_000_000
    # cv2: bilinear without antialiasing, as the released pipeline | pil: detectron2's own resize.
    cfg.INPUT.RESIZE = "cv2"


def _add_clip(cfg: CN) -> None:
    # Name of an open_clip ViT with a class token, or the path of an open_clip model json.
    cfg.MODEL.CLIP = CN({"NAME": "ViT-B-16-quickgelu"})
    # open_clip tag, path of a weight file or Hugging Face folder, or "" for random weights (tests).
    cfg.MODEL.CLIP.PRETRAINED = "openai"
    # Expected sha256 of the weight file; "" accepts any and records what was found. A TorchScript
    # archive that is not one of OpenAI's is read only if its checksum stands here.
    cfg.MODEL.CLIP.SHA256 = ""
    # Folder for downloaded CLIP weights; "" is open_clip's default.
    cfg.MODEL.CLIP.CACHE_DIR = ""
    # Resize of the position table: bilinear (released code) | bicubic (open_clip).
    cfg.MODEL.CLIP.POS_EMBED_RESIZE = "bilinear"
    # True counts the class embedding twice, as the released code; False is plain CLIP.
    cfg.MODEL.CLIP.DOUBLE_CLS_EMBED = True
    # Name of a set in prompt_templates.json, or a list of templates with one {} each.
    cfg.MODEL.CLIP.TEMPLATES = "single"
    # Prompt names of a class: mean of their vectors | max: the highest of their logits.
    cfg.MODEL.CLIP.SYNONYMS = "mean"
    # Prompts per text forward (time, memory and rounding).
    cfg.MODEL.CLIP.TEXT_BATCH = 256
    # Folder of encoded class vectors shared between runs; "" keeps them in memory only.
    cfg.MODEL.CLIP.TEXT_CACHE = ""
    # Learned prompt tokens per layer; 0 switches deep prompts off.
    cfg.MODEL.CLIP.PROMPT = CN({"NUM_TOKENS": 10})
    # Layers that get prompts, counted from the input; 0 means all.
    cfg.MODEL.CLIP.PROMPT.DEPTH = 0
    # Dropout on the projected prompts.
    cfg.MODEL.CLIP.PROMPT.DROPOUT = 0.1
    # Trainable LayerNorm on all tokens before CLIP's ln_post.
    cfg.MODEL.CLIP.PROMPT.POST_NORM = True
    cfg.MODEL.BACKBONE.NAME = "CLIPViT"
    # Recompute each block in the backward pass: a third more time, a fraction of the memory.
    cfg.MODEL.BACKBONE.CHECKPOINT = False


def _add_tagclip(cfg: CN) -> None:
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NAME = "TagCLIP", "TagCLIPHead"
    # torch.compile of the ViT's blocks and the loss: minutes at first, faster afterwards.
    cfg.MODEL.COMPILE = False
    # cls_text: [class vector * image vector ; class vector] | none: the class vector alone.
    cfg.MODEL.TAGCLIP = CN({"RELATION": "cls_text"})
    # One letter per decoder layer: a = with self-attention among the classes, n = without.
    cfg.MODEL.TAGCLIP.LAYERS = "ann"
    # Attention heads of the decoder; divides the CLIP embedding size.
    cfg.MODEL.TAGCLIP.NUM_HEADS = 8
    # Dropout inside the decoder.
    cfg.MODEL.TAGCLIP.DROPOUT = 0.1
    # Multiplies class, image and patch vectors (not the trusty token) before the decoder.
    cfg.MODEL.TAGCLIP.FEATURE_SCALE = 1.0

    # Whether something learned says which pixels belong to seen classes: the trusty map.
    cfg.MODEL.TAGCLIP.TRUSTY = CN({"ENABLED": True})
    # token: one more query of the decoder (the paper) | conv: a convolutional head of its own.
    cfg.MODEL.TAGCLIP.TRUSTY.KIND = "token"
    # conv: channels of the hidden layers.
    cfg.MODEL.TAGCLIP.TRUSTY.CONV = CN({"CHANNELS": 48})
    # conv: dropout before the last layer.
    cfg.MODEL.TAGCLIP.TRUSTY.CONV.DROPOUT = 0.1
    # conv: learning rate at the start; it falls linearly to 0.
    cfg.MODEL.TAGCLIP.TRUSTY.CONV.BASE_LR = 3e-3
    # conv: weight decay of its AdamW.
    cfg.MODEL.TAGCLIP.TRUSTY.CONV.WEIGHT_DECAY = 0.05
    # conv: its steps per training iteration; a short schedule needs several.
    cfg.MODEL.TAGCLIP.TRUSTY.CONV.STEPS = 1
    # conv: how many batches it learns from, kept in half precision and in checkpoints; 1: the
    # current one only, which is not kept.
    cfg.MODEL.TAGCLIP.TRUSTY.CONV.REPLAY_BATCHES = 1
    # seen: 1 on seen-class pixels, reads no unseen label | novel: 1 on unseen-class pixels.
    cfg.MODEL.TAGCLIP.TRUSTY.TARGET = "seen"
    # token: what its term of the loss is, focal (released code) | dice.
    cfg.MODEL.TAGCLIP.TRUSTY.LOSS = "focal"

    # Weight of the focal term.
    cfg.MODEL.TAGCLIP.LOSS = CN({"MASK": 20.0})
    # Weight of the Dice term.
    cfg.MODEL.TAGCLIP.LOSS.DICE = 1.0
    # Weight of the trusty term.
    cfg.MODEL.TAGCLIP.LOSS.TRUSTY = 10.0
    # Focal loss: weight of positives; negatives weigh 1 - alpha.
    cfg.MODEL.TAGCLIP.LOSS.FOCAL_ALPHA = 0.25
    # Focal loss: exponent.
    cfg.MODEL.TAGCLIP.LOSS.FOCAL_GAMMA = 2.0
    # True: ignored and padded pixels are negatives of every class (released code) | False: none.
    cfg.MODEL.TAGCLIP.LOSS.IGNORE_AS_NEGATIVE = True
    # Side of the label grid on which the loss is computed, in pixels per label (1: every pixel).
    cfg.MODEL.TAGCLIP.LOSS.STRIDE = 1
    # Memory for full-resolution planes; the classes per chunk follow from it.
    cfg.MODEL.TAGCLIP.LOSS.WORKSPACE_MIB = 256

    # Which scores the trusty map multiplies: none | seen | unseen | both.
    cfg.MODEL.TAGCLIP.TEST = CN({"GATE": "both"})
    # product: that (the paper) | additive, lift: the map's logit is added to unseen scores instead,
    # clipped to [-4, 4] or [0, 4].
    cfg.MODEL.TAGCLIP.TEST.GATE_FORM = "product"
    # additive, lift: weight of half that logit.
    cfg.MODEL.TAGCLIP.TEST.GATE_SCALE = 0.5
    # Subtracted from the scores of seen classes.
    cfg.MODEL.TAGCLIP.TEST.SEEN_BIAS = 0.1
    # False: bias, then gate (released code) | True: gate, then bias.
    cfg.MODEL.TAGCLIP.TEST.BIAS_AFTER_GATE = False
    # Classes of a vocabulary without a split: match (seen if in training) | seen | unseen.
    cfg.MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES = "match"
    # slide: overlapping windows | whole: one forward pass of the whole image.
    cfg.MODEL.TAGCLIP.TEST.MODE = "slide"
    # Side and step of the windows, in pixels of the resized image.
    cfg.MODEL.TAGCLIP.TEST.WINDOW = 512
    cfg.MODEL.TAGCLIP.TEST.STRIDE = 426
    # Windows per forward pass (time and memory only, never the result).
    cfg.MODEL.TAGCLIP.TEST.WINDOW_BATCH = 4
    # Memory for full-resolution score planes; the classes per chunk follow from it.
    cfg.MODEL.TAGCLIP.TEST.WORKSPACE_MIB = 256
    # scores: (K, H, W) per image | labels: (H, W) labels and their scores.
    cfg.MODEL.TAGCLIP.TEST.OUTPUT = "labels"
    # Pixels whose best score, after gate and bias, is below are -1, "other" (labels); 0 is off.
    cfg.MODEL.TAGCLIP.TEST.BACKGROUND_THRESHOLD = 0.0


def _add_self_training(cfg: CN) -> None:
    # Which pixels get pseudo-labels in the transductive setting: unlabeled: ignored ones on which
    # an unseen class wins | novel: those whose true class is unseen, as in ZegCLIP.
    cfg.MODEL.TAGCLIP.SELF_TRAINING = CN({"REGION": "unlabeled"})
    # Least score, before the gate, of a pseudo-label (unlabeled).
    cfg.MODEL.TAGCLIP.SELF_TRAINING.THRESHOLD = 0.3
    # True: the trusty map multiplies seen and unseen scores before they are compared (unlabeled).
    cfg.MODEL.TAGCLIP.SELF_TRAINING.GATE = True


def _add_solver(cfg: CN) -> None:
    # ADAMW | SGD.
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # AdamW's decay of the gradient's mean and square.
    cfg.SOLVER.ADAM_BETAS = [0.9, 0.999]
    # Multiplies the learning rate of the deep prompts.
    cfg.SOLVER.PROMPT_LR_FACTOR = 1.0
    # Floor of the schedule, an absolute learning rate.
    cfg.SOLVER.MIN_LR = 1e-6
    # Exponent of the polynomial decay.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # The rest are detectron2's keys with the values of the official configs.
    cfg.SOLVER.BASE_LR = 2e-4
    cfg.SOLVER.WEIGHT_DECAY = 0.01
    # The released rule meant 0 but never applied.
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.01
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_ITERS = 1500
    cfg.SOLVER.WARMUP_FACTOR = 1e-6
    # bfloat16 | float16 under SOLVER.AMP.ENABLED.
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # True evaluates although trainable tensors are missing or do not fit.
    cfg.TEST.ALLOW_PARTIAL_WEIGHTS = False
    # Written to inference/<dataset>/predictions: png: indices, trusty map | json: RLE | "": none.
    cfg.TEST.SAVE_PREDICTIONS = ""
    # Writes low-resolution logits to inference/<dataset>/logits/, for tools/analyze_predictions.py
    # (2 bytes per class, patch and window: 0.35 MB per window of 32 x 32 patches and 171 classes).
    cfg.TEST.SAVE_LOGITS = False
