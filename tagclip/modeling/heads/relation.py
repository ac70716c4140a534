"""Relation descriptor: class queries that know the image."""

from __future__ import annotations

from torch import Tensor, nn

from tagclip.config.checks import check_value

__all__ = ["RelationDescriptor"]


class RelationDescriptor(nn.Module):
    """r_k = W [t_k * g ; t_k] + b (ZegCLIP, arXiv 2212.03588; docs/method.md, section 4)."""

    def __init__(self, *, dim: int, kind: str = "cls_text") -> None:
        """Create the projection, initialised Xavier-uniform with zero bias.

        Args:
            dim: channels D of class and image vectors.
            kind: ``cls_text``, the formula above, or ``none``, r_k = W t_k + b.

        Raises:
            ConfigError: the kind is unknown.
        """
        super().__init__()
        check_value("MODEL.TAGCLIP.RELATION", kind)
        self.kind = kind
        self.proj = nn.Linear(2 * dim if kind == "cls_text" else dim, dim)
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, class_embed: Tensor, clip_global: Tensor) -> Tensor:
        """Describe every class for every image.

        Args:
            class_embed: (K, D) class vectors.
            clip_global: (N, D) image vectors.

        Returns:
            (N, K, D) queries.
        """
        if self.kind == "none":
            return self.proj(class_embed).expand(clip_global.shape[0], -1, -1)
        weight_product, weight_text = self.proj.weight.chunk(2, dim=1)
        # W [t*g ; t] = W1 (t*g) + W2 t: the second term is the same for all images.
        text = nn.functional.linear(class_embed, weight_text, self.proj.bias)
        product = class_embed * clip_global[:, None]
        return nn.functional.linear(product, weight_product) + text
