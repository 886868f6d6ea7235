"""Published potentials: where their publishers keep them, and what one may do with them.

A SHA-256 stands here only where the file itself was at hand; None means that a download can be
named by its hash, but not verified.
"""

from typing import NamedTuple

MIT = "MIT"
ASL = "Academic Software License (ASL)"
TERMS = {
    MIT: "use, change and pass on freely, also commercially; keep the notice",
    ASL: "academic use only, no commercial use; see https://github.com/gabor1/ASL",
}
PERMISSIVE = (MIT,)

NEQUIX = (
    "https://raw.githubusercontent.com/atomicarchitects/nequix/"
    "0ffdf881603d2c97f9105c64c3ec2df74dc1c224/models/"
)
SO3LR = (
    "https://raw.githubusercontent.com/general-molecular-simulations/so3lr/"
    "5ec39b9d8d83872107cd3f1bc5904387eb9ff4c8/so3lr/params/"
)
SEVENNET = (
    "https://raw.githubusercontent.com/MDIL-SNU/SevenNet/"
    "b3d99aa7bb4bbc112fdcc49272b5ddaaed83867b/sevenn/pretrained_potentials/"
)
MACE_MP = "https://github.com/ACEsuit/mace-mp/releases/download/"
MACE_OFF = "https://raw.githubusercontent.com/ACEsuit/mace-off/main/mace_off23/"

NEQUIX_PAPER = "Koker et al. 2025, arXiv:2508.16067"
PFT_PAPER = "Koker et al. 2026, arXiv:2601.07742"
MACE_MP_PAPER = "Batatia et al. 2023, arXiv:2401.00096"
MACE_OFF_PAPER = "Kovács et al. 2023, arXiv:2312.15211"
SEVENNET_PAPER = "Park et al. 2024, 10.1021/acs.jctc.4c00190"
SO3LR_PAPER = "Kabylda et al. 2025, 10.1021/jacs.5c09558"


class Published(NamedTuple):
    """A potential that others have published. The first file is imported, others lie beside it."""

    files: dict[str, str | None]  # {address: SHA-256 or None}
    licence: str
    level_of_theory: str
    citation: str

    @property
    def permissive(self) -> bool:
        return self.licence in PERMISSIVE

    @property
    def verified(self) -> bool:
        """Whether the hash of every file is known."""
        return all(self.files.values())

    @property
    def terms(self) -> dict:
        """What the card of an imported model keeps."""
        return {
            "licence": self.licence,
            "licence_terms": TERMS.get(self.licence, ""),
            "level_of_theory": self.level_of_theory,
            "citation": self.citation,
            "origin": next(iter(self.files)),
        }


def _one(address, sha256, licence, theory, citation):
    return Published({address: sha256}, licence, theory, citation)


def _nequix(name, sha256, theory, citation):
    return {name: _one(f"{NEQUIX}{name}.nqx", sha256, MIT, theory, citation)}


PBE_U = "DFT, PBE+U"
PUBLISHED = {
    **_nequix(
        "nequix-mp-1",
        "1647af8e627e1afa11e2bfadeab0797326513a521afd7dd01606a96f56783eee",
        f"{PBE_U} (MPtrj)",
        NEQUIX_PAPER,
    ),
    **_nequix(
        "nequix-mp-1-pft",
        "a88aeaed71fd447572dc57af21d469207d7737b85a6dbb66f8c38156f175c5f1",
        f"{PBE_U} (MPtrj, MDR phonons)",
        PFT_PAPER,
    ),
    **_nequix(
        "nequix-omat-1",
        "2d0802ae7f5915cb488c44d25649d98404a103697e6500abb40f515e003a46a6",
        f"{PBE_U}, VASP 54 (OMat24)",
        PFT_PAPER,
    ),
    **_nequix(
        "nequix-oam-1",
        "6a43475eaeb32a7a049f36c1306d78aa1e7a17e8af37aeda7901c8fec0ca845c",
        f"{PBE_U} (OMat24, sAlex, MPtrj)",
        PFT_PAPER,
    ),
    **_nequix(
        "nequix-oam-1-pft",
        "4ce693d68886512aab50c84ea2400efd68163e11155f7c7babe98e695177e809",
        f"{PBE_U} (OMat24, sAlex, MPtrj, MDR phonons)",
        PFT_PAPER,
    ),
    "so3lr": Published(
        {
            f"{SO3LR}params.pkl": (
                "1c481bd2d9280f8b7b131ec65e92d25ff73deda76956bc137754c2acb98d93fd"
            ),
            f"{SO3LR}hyperparameters.json": (
                "02a95f777f394dc9ae43529b3ac5e7e0e2e89f60c1fa9e6697926d31308853a9"
            ),
        },
        MIT,
        "DFT, PBE0+MBD",
        SO3LR_PAPER,
    ),
    "sevennet-0": _one(
        f"{SEVENNET}SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
        "7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36",
        MIT,
        f"{PBE_U} (MPtrj)",
        SEVENNET_PAPER,
    ),
    "sevennet-l3i5": _one(
        f"{SEVENNET}SevenNet_l3i5/checkpoint_l3i5.pth",
        "a7ff190d41efe5b8317a03d20a468e4036a1a3e64e0b14fdbab64ac3f4bfc09d",
        MIT,
        f"{PBE_U} (MPtrj)",
        SEVENNET_PAPER,
    ),
    "mace-mp-0-small": _one(
        f"{MACE_MP}mace_mp_0/2023-12-10-mace-128-L0_energy_epoch-249.model",
        None,
        MIT,
        f"{PBE_U} (MPtrj)",
        MACE_MP_PAPER,
    ),
    "mace-mp-0-medium": _one(
        f"{MACE_MP}mace_mp_0/2023-12-03-mace-128-L1_epoch-199.model",
        None,
        MIT,
        f"{PBE_U} (MPtrj)",
        MACE_MP_PAPER,
    ),
    "mace-mp-0b3-medium": _one(
        f"{MACE_MP}mace_mp_0b3/mace-mp-0b3-medium.model",
        None,
        MIT,
        f"{PBE_U} (MPtrj)",
        MACE_MP_PAPER,
    ),
    "mace-mpa-0-medium": _one(
        f"{MACE_MP}mace_mpa_0/mace-mpa-0-medium.model",
        None,
        MIT,
        f"{PBE_U} (MPtrj, sAlex)",
        MACE_MP_PAPER,
    ),
    "mace-omat-0-small": _one(
        f"{MACE_MP}mace_omat_0/mace-omat-0-small.model",
        None,
        ASL,
        f"{PBE_U}, VASP 54 (OMat24)",
        MACE_MP_PAPER,
    ),
    "mace-omat-0-medium": _one(
        f"{MACE_MP}mace_omat_0/mace-omat-0-medium.model",
        None,
        ASL,
        f"{PBE_U}, VASP 54 (OMat24)",
        MACE_MP_PAPER,
    ),
    **{
        f"mace-off23-{size}": _one(
            f"{MACE_OFF}MACE-OFF23_{size}.model",
            None,
            ASL,
            "DFT, wB97M-D3(BJ)/def2-TZVPPD (SPICE)",
            MACE_OFF_PAPER,
        )
        for size in ("small", "medium", "large")
    },
}


def known_file(sha256: str, beside: dict | None = None) -> dict | None:
    """Name and terms of the published potential of a file with this hash.

    beside: {name: SHA-256} of what is read with it, which must be as published too.
    """
    for name, published in PUBLISHED.items():
        (_, first), *others = published.files.items()
        others = {address.rpartition("/")[2]: expected for address, expected in others}
        if sha256 == first and others == (beside or {}):
            return {"name": name, **published.terms}
    return None
