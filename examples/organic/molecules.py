"""The molecules of the organic set, and which split each belongs to.

Kept apart from the sampling so that a reader can see the chemistry at a glance, and so that
the split of a molecule follows from its SMILES alone.
"""

import hashlib

from rdkit import Chem

MAX_HEAVY, MAX_ATOMS = 9, 21

BY_CLASS = {
    "tiny": (
        "[H][H] N#N [C-]#[O+] O OO N NN C C#N [C-]#[NH+] C=O C#C C=C CC CO CN C=N N=O N=N NO "
        "O=C=O [N-]=[N+]=O [O-][O+]=O N=[N+]=[N-] N=C=O OC#N C=C=O OC=O NC=O N=CN CC=O CC#N NC#N "
        "C=[N+]=[N-] ON=O O[N+](=O)[O-] OC(O)=O N#CC#N O=CC=O C=C=C CC#C CC=C C1CC1 C1CO1 C1CN1 "
        "C1=CC1 COO OCO NCO NCN CNN CON C[N+]#[C-] C[N+](=O)[O-] CON=O CN=O O=C=C=C=O C=C=N "
        "C#CC#C C#CC#N C=C=C=C C#CC=O OC#C NC#C OC=C NC=C O=CN=O NN=N NNN NON N[N+](=O)[O-]"
    ),
    "alkanes": (
        "CCC CCCC CC(C)C CCCCC CCC(C)C CC(C)(C)C CCCCCC CC1CC1 C1CCC1 C1CCCC1 C1CCCCC1 CC1CCCC1 "
        "CC1CCC1 C1CC2CC12 C1C2CC12 C1CC2CCC12 C1CC2CCC1C2 C1CC12CC2 C1C2CC1C2 CCC1CC1 CC1CC1C "
        "CC1(C)CC1"
    ),
    "alkenes": (
        "CC=CC CCC=C CC(C)=C C=CC=C CC=CC=C C=CC(=C)C C1=CCC1 C1=CCCC1 C1=CC=CC1 C1=CCCCC1 "
        "C1=CC=CCC1 C1=CCC=CC1 C=C1CC1 CC1=CC1 C=CC1CC1 C=C1CCC1 C=CC=CC=C CC=C=C CC(C)=C=C "
        "C=CCC=C C=C1C=CC=C1 C=C1C=CC(=C)C=C1 CC=C(C)C CC(C)=C(C)C C1=CC2CC2C1 C1=CC2CCC1C2 "
        "C1=CC=CC=CC1 C1=CC=C1 C=C1C=C1 CC1=CCCC1 C=C1CCCC1 C1=CC2C=CC1C2"
    ),
    "alkynes": (
        "CC#CC CCC#C C#CC=C C#CCC#C CC#CC=C CC#CC#C CCCC#C CC(C)C#C C#CC1CC1 C#CC#CC#C CC#CC#N "
        "C#CC#CC#N"
    ),
    "aromatics": (
        "c1ccccc1 Cc1ccccc1 Oc1ccccc1 Nc1ccccc1 C=Cc1ccccc1 C#Cc1ccccc1 N#Cc1ccccc1 O=Cc1ccccc1 "
        "COc1ccccc1 CNc1ccccc1 OCc1ccccc1 NCc1ccccc1 OC(=O)c1ccccc1 NC(=O)c1ccccc1 "
        "O=[N+]([O-])c1ccccc1 O=Nc1ccccc1 Oc1ccccc1O Oc1cccc(O)c1 Oc1ccc(O)cc1 Nc1ccccc1N "
        "Nc1ccc(O)cc1 Cc1ccccc1C Cc1ccc(C)cc1 Cc1cccc(C)c1 CCc1ccccc1 Cc1ccc(O)cc1 Cc1ccccc1O "
        "Cc1ccc(N)cc1 O=Cc1ccccc1O N#Cc1ccc(N)cc1 N#Cc1ccc(O)cc1 O=C1C=CC(=O)C=C1 O=C1C=CC=CC1=O "
        "NNc1ccccc1 O=C=Nc1ccccc1 ON=Cc1ccccc1 c1ccc2[nH]ccc2c1 c1ccc2occc2c1 c1ccc2[nH]cnc2c1 "
        "c1ccc2nocc2c1 c1ccc2[nH]ncc2c1 C1Cc2ccccc21 C1Oc2ccccc2O1 c1cc2cccc-2c1"
    ),
    "azines": (
        "c1ccncc1 c1cncnc1 c1cnccn1 c1ccnnc1 c1ncncn1 c1cnncn1 c1nncnn1 Cc1ccccn1 Cc1cccnc1 "
        "Cc1ccncc1 Oc1ccccn1 Oc1cccnc1 O=c1cc[nH]cc1 O=c1cccc[nH]1 Nc1ccccn1 Nc1cccnc1 Nc1ccncc1 "
        "Nc1ncccn1 Nc1cnccn1 Cc1cnccn1 Cc1ncccn1 Cc1ccncn1 COc1ccccn1 O=Cc1cccnc1 N#Cc1ccncc1 "
        "[O-][n+]1ccccc1 C=Cc1ccccn1 Nc1ncncn1 O=c1cc[nH]cn1 O=c1ccoc(=O)[nH]1"
    ),
    "azoles": (
        "c1cc[nH]c1 c1ccoc1 c1c[nH]cn1 c1cn[nH]c1 c1cocn1 c1cnoc1 c1c[nH]nn1 c1cn[nH]n1 "
        "c1nc[nH]n1 c1nn[nH]n1 c1nnn[nH]1 c1nnco1 c1ncon1 c1cnon1 Cc1ccc[nH]1 Cc1cc[nH]c1 "
        "Cn1cccc1 Cc1ccco1 Cc1ccoc1 Cn1ccnc1 Cc1c[nH]cn1 Cc1ncc[nH]1 Cn1cccn1 Cc1cc[nH]n1 "
        "Cc1cocn1 Cc1ncco1 Cc1cnoc1 Cc1ccno1 Cn1ccnn1 Cn1cncn1 Cn1cnnn1 Cc1nnn[nH]1 O=Cc1ccco1 "
        "O=Cc1ccc[nH]1 Nc1ccn[nH]1 Nc1ncc[nH]1 Nc1nc[nH]n1 Nc1cocn1 OCc1ccco1 N#Cc1ccco1 "
        "N#Cc1ccc[nH]1 Cc1ccc(C)o1 Cc1ccc(C)[nH]1 C=Cc1ccco1 OC(=O)c1ccco1 O=Cc1c[nH]cn1 "
        "Nc1nn[nH]n1 Cc1nnco1 Cc1noc(C)n1 c1cc2cc[nH]n2n1 c1cn2ccnc2[nH]1 c1cnc2[nH]ccn12 "
        "c1ccn2cccc2c1 c1ccn2ccnc2c1"
    ),
    "alcohols": (
        "CCO CCCO CC(C)O CCCCO CC(C)(C)O CCC(C)O CC(C)CO OCCO OCC(O)CO CC(O)CO OCCCO OC1CC1 "
        "OC1CCC1 OC1CCCC1 OC1CCCCC1 OCC=C OCC#C OCC#N OCC1CC1 CC(O)C#N CC(O)C#C OCC=O OCC(=O)CO "
        "OCC(O)C=O CC(=O)CO CC(O)C=O OC(O)CO OC1COC1 OC1CCOC1 OC1CCCO1 OCC1CO1 OCC1CCCO1 "
        "OC1COCC1O OCC(O)C(O)C=O OC1CCCCO1 OCC1OCCO1 CC(O)O CC(O)OC OC=CO CC(O)=C OC1=CCCC1 "
        "OC1=CC(=O)C1"
    ),
    "ethers": (
        "COC CCOC CCOCC COCOC COCCO COC(C)C COC=C COC#C C1COC1 C1CCOC1 C1CCOCC1 C1COCCO1 C1OCOCO1 "
        "C1COCO1 C1=COC=C1 C1=COCC1 C1=CCOC1 CC1CO1 CC1(C)CO1 CC1OC1C C=CC1CO1 C#CC1CO1 "
        "C1CC2OC2C1 C1OC1C1CO1 CC1CCCO1 COC1CC1 COCC#N COCC=C C1=COC=CO1 C1=COC=CC1 C1=CCOCC1 "
        "COOC CCOO CC(=O)OO C1COO1 C1OO1 C1OCOO1 COC(C)(C)C"
    ),
    "carbonyls": (
        "CCC=O CC(C)=O CCCC=O CC(C)C=O CCC(C)=O CCC(=O)CC CC(=O)C(C)C CC(=O)C=O CC(=O)C(C)=O "
        "CC(=O)CC(C)=O O=CCC=O O=CCCC=O C=CC=O CC=CC=O C=CC(C)=O CC(=C)C=O C#CC(C)=O CC#CC=O "
        "O=C1CC1 O=C1CCC1 O=C1CCCC1 O=C1CCCCC1 O=C1C=CC1 O=C1C=CCC1 O=C1C=CCCC1 O=C1C=C1 "
        "O=C1C=CC=C1 O=c1cccccc1 O=c1ccocc1 O=C1COC1 O=C1CCOC1 O=C1CCC1=O O=CC1CC1 CC(=O)C1CC1 "
        "CC=C=O CC(C)=C=O C=CC=C=O O=C=C=C=C=C C=C=C=O O=CC(=O)C=O O=CC#N CC(=O)C#N O=CC=CC=O "
        "O=CC#CC=O O=C1CC(=O)C1 OC=CC=O CC(O)=CC=O CC(O)=CC(C)=O O=CC=CO NC=CC=O O=C1C(=O)C=C1"
    ),
    "acids": (
        "CC(=O)O CCC(=O)O CCCC(=O)O CC(C)C(=O)O C=CC(=O)O C#CC(=O)O OC(=O)C(=O)O OC(=O)CC(=O)O "
        "OCC(=O)O CC(O)C(=O)O CC(=O)C(=O)O O=CC(=O)O COC=O CCOC=O CC(=O)OC CC(=O)OCC CCC(=O)OC "
        "C=CC(=O)OC CC(=O)OC=C COC(=O)OC COC(O)=O COC(=O)C(=O)O COCC(=O)O OC(=O)C1CC1 "
        "OC(=O)C=CC(=O)O CC(=O)OC(C)=O O=COC=O CC(=O)OC=O O=C1CCO1 O=C1CCCO1 O=C1CCCCO1 "
        "O=C1C=CCO1 O=C1CCC(=O)O1 O=C1C=CC(=O)O1 O=C1OCCO1 O=C1OC=CO1 O=C1OCC1=O C=C1CC(=O)O1 "
        "COC(=O)C#C N#CCC(=O)O COC(=O)C#N COC(=O)CO CC1CCC(=O)O1 CC1COC(=O)O1 O=c1cccco1 "
        "CC(=C)C(=O)O CC=CC(=O)O CC(=O)CC(=O)O OOC=O"
    ),
    "amines": (
        "CCN CNC CN(C)C CCNC CCCN CC(C)N CCNCC CC(C)(C)N CN(C)N CNNC NCCN NCCO CNCCO CN(C)C=C "
        "C1CNC1 C1CCNC1 C1CCNCC1 C1CNCCN1 C1COCCN1 C1CNCN1 CN1CC1 CC1CN1 CN1CCC1 CN1CCCC1 NC1CC1 "
        "NC1CCC1 NC1CCCC1 NCC=C NCC#C NCC#N CN(C)C#N CNC#N CNC=C C1=CNCC1 C1=CCNC1 C1NCNCN1 "
        "C1CNN1 C1NN1 NCC1CC1 CN(C)O CNO CNOC NOCC CCNO COCCN C1CN2CC2C1 C1CC2NC2C1 C1CN2CCC1C2 "
        "NCNC CN(C)CN NC1CCCCC1 OC1CNC1 C1CCON1 C1CCNN1 C1CNOC1"
    ),
    "imines": (
        "CC=N CN=C CC=NC CC(C)=N CC(C)=NC C=CC=N N=CC=N C=NC=N C=NN CC=NN C=NN=C CC(C)=NN C=NO "
        "CC=NO CC(C)=NO CON=C CC(=N)N CN=CN CNC=N NC(=N)N CNC(=N)N NC(N)=NC#N COC=N CC(=N)OC "
        "CN=NC CCN=NC C1=NCC1 C1=NCCC1 C1=NCCN1 C1=NCCO1 C1=NNCC1 C1C=N1 C1N=N1 C1CN=NC1 "
        "CC1=NCCC1 CC1=NCCO1 ON=C1CCC1 ON=C1CCCC1 ON=CC=NO N=C1CCCC1 C=CN=C CN=C=NC N=C=N CN=C=N "
        "CN=C=O CCN=C=O C=CN=C=O COC#N CC(=O)N=C=O C=[N+]([O-])C CC#[N+][O-] C#[N+][O-] CN(C)C=N"
    ),
    "nitriles": (
        "CCC#N CCCC#N CC(C)C#N C=CC#N CC=CC#N N#CCC#N N#CCCC#N N#CC=CC#N N#CC1CC1 N#CC(=O)O "
        "CC(=C)C#N N#CC(C#N)=C N#CC#CC#N N#CC(N)=O N#CN=C N#CC1CO1 CC[N+]#[C-] C=C[N+]#[C-] "
        "N#CC=NO CC(C)(C)C#N NC(C#N)=CC#N NC=CC#N OC=CC#N"
    ),
    "nitro": (
        "CC[N+](=O)[O-] CC(C)[N+](=O)[O-] CCC[N+](=O)[O-] C=C[N+](=O)[O-] CN[N+](=O)[O-] "
        "CN(C)[N+](=O)[O-] CO[N+](=O)[O-] CCO[N+](=O)[O-] OCC[N+](=O)[O-] "
        "O=[N+]([O-])C[N+](=O)[O-] CCON=O CN(C)N=O CNN=O CCN=O NC(=O)[N+](=O)[O-] "
        "O=[N+]([O-])c1ccc[nH]1 O=[N+]([O-])c1ccco1 CN=[N+]=[N-] CCN=[N+]=[N-] C=CN=[N+]=[N-] "
        "N#CCN=[N+]=[N-] CC=[N+]=[N-] [N-]=[N+]=CC=O C1CC1[N+](=O)[O-] O=C=NN=[N+]=[N-]"
    ),
    "amides": (
        "CC(N)=O CNC=O CC(=O)NC CN(C)C=O CC(=O)N(C)C CCC(N)=O CCC(=O)NC C=CC(N)=O C=CC(=O)NC "
        "NC(N)=O CNC(N)=O CNC(=O)NC CN(C)C(N)=O COC(N)=O CNC(=O)OC CCOC(N)=O NC(O)=O NC(=O)C(N)=O "
        "NC(=O)CC(N)=O NC(=O)CO COCC(N)=O O=CNC=O CC(=O)NC(C)=O CC(=O)NN CC(=O)NO ONC=O NNC=O "
        "NNC(N)=O ONC(N)=O NC(=O)NO NC(=O)N=O NC(=O)C=O NC(=O)C#N NC(=O)C1CC1 O=C1CCN1 O=C1CCCN1 "
        "O=C1CCCCN1 CN1CCCC1=O O=C1CNCCN1 O=C1CNC(=O)CN1 O=C1NCCN1 O=C1NCCO1 O=C1NC(=O)C=C1 "
        "O=C1NC(=O)CC1 O=C1CNC(=O)N1 O=C1NC=CN1 O=C1C=CCN1 NC(=O)C#C CC(=O)C(N)=O O=C1CN1 "
        "O=C1NCC1=O CC1CC(=O)N1"
    ),
    "bio": (
        "NCC(=O)O CC(N)C(=O)O NC(CO)C(=O)O CNCC(=O)O NCCC(=O)O NCC(N)=O CC(N)C(N)=O NCC(=O)OC "
        "NCC=O NC=C(O)O CC(=O)NCC=O NCC(=O)NC NC(=O)CNC=O CC(=O)NCO O=CNCC(=O)O CC(N)C#N "
        "NCC(O)=NO O=c1cc[nH]c(=O)[nH]1 Nc1cc[nH]c(=O)n1 Cc1c[nH]c(=O)[nH]c1=O "
        "O=c1[nH]cnc2[nH]cnc12 c1ncc2[nH]cnc2n1 O=C1CC(=O)NC(=O)N1 O=c1ncnc[nH]1 NC(=O)c1c[nH]cn1 "
        "Nc1cnc[nH]1 O=C(O)C1CCCN1 NC1CONC1=O CC(O)C(N)C(=O)O NC(=N)NC(N)=O NC(N)=NCC "
        "O=C1NC(=O)C(=O)N1 NC(=O)c1cccnc1 OC1COC=C1 OC1C=CCO1 Cc1cc[nH]c(=O)n1 Cn1ccc(N)nc1=O "
        "CC1NC(=O)NC1=O O=C1OCC(O)C1O Nc1nc(N)nc(N)n1 CC1OCC(O)C1O"
    ),
}

GROUPS = "C CC C=C C#C C(C)C C1CC1 CC=C CC#C COC".split()
SUBSTITUENTS = (
    "O OC N NC N(C)C C=O C(C)=O C(=O)O C(=O)OC C(N)=O OC=O OC(C)=O NC=O C#N [N+](=O)[O-] "
    "C=NO NN N=C=O c%91ccc[nH]%91 c%91ccoc%91 n%91ccnc%91 N=[N+]=[N-]"
).split()
PARTNERS = (
    "O CO N C#N C=O OC=O C c1ccccc1 CC#N CN NC=O CC C=C C#C O=C=O CC(C)=O COC c1ccncc1 "
    "c1cc[nH]c1 CC(N)=O CC(=O)O"
).split()


def canonical(smiles):
    """Constitution only: stereoisomers share a name, hence a split."""
    return Chem.CanonSmiles(smiles, useChiral=0)


def with_hydrogens(name):
    return Chem.AddHs(Chem.MolFromSmiles(name))


def skeleton(name):
    """Who is bonded to whom, blind to bond orders: equal for two ways to draw one molecule."""
    mol = Chem.RWMol(with_hydrogens(name))
    Chem.Kekulize(mol, clearAromaticFlags=True)
    for atom in mol.GetAtoms():
        atom.SetFormalCharge(0)
        atom.SetNoImplicit(True)
    for bond in mol.GetBonds():
        bond.SetBondType(Chem.BondType.SINGLE)
    return Chem.MolToSmiles(mol, isomericSmiles=False, allHsExplicit=True)


def fits(name):
    """Neutral, closed shell, H C N O, small."""
    mol = with_hydrogens(name)
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    closed = not any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())
    neutral = Chem.GetFormalCharge(mol) == 0 and "." not in name
    small = mol.GetNumHeavyAtoms() <= MAX_HEAVY and len(numbers) <= MAX_ATOMS
    return closed and neutral and small and set(numbers) <= {1, 6, 7, 8} and sum(numbers) % 2 == 0


def candidates():
    """The hand-written SMILES, then every group with every substituent."""
    written = [smiles for names in BY_CLASS.values() for smiles in names.split()]
    return written + [group + substituent for group in GROUPS for substituent in SUBSTITUENTS]


def all_molecules():
    """Canonical names in a fixed order, each molecule once; a SMILES that does not parse raises."""
    found = {}
    for smiles in candidates():
        name = canonical(smiles)
        if fits(name):
            found.setdefault(skeleton(name), name)
    return list(found.values())


def is_anchor(name):
    """Tiny molecules have no analogue and dimers need their partners: both are trained on."""
    mol = with_hydrogens(name)
    tiny = mol.GetNumHeavyAtoms() <= 2 or mol.GetNumAtoms() <= 4
    return tiny or name in {canonical(partner) for partner in PARTNERS}


def split_of(name):
    """train, val or test, by a hash of the canonical SMILES."""
    if is_anchor(name):
        return "train"
    place = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 1000
    return "test" if place < 90 else "val" if place < 145 else "train"
