"""Keys, and the ways to break what they have signed."""

import shutil
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from deploykit.artifact import GRAPH, MANIFEST, SIGNATURE, Artifact, sha256_of, signing


def write_pair(folder, private, password=None):
    """Writes a pair of keys, and returns both files."""
    folder.mkdir(parents=True)
    locked = BestAvailableEncryption(password) if password else NoEncryption()
    (folder / "private.pem").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)
    return folder / "private.pem", folder / "public.pem"


def reseal(folder, name):
    """Makes the manifest agree with a changed file, as a forger would."""
    old = Artifact.load(folder).manifest.files[name]
    text = (folder / MANIFEST).read_text().replace(old.sha256, sha256_of(folder / name))
    (folder / MANIFEST).write_text(text.replace(f'"bytes": {old.bytes}', f'"bytes": {(folder / name).stat().st_size}'))


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def forge(folder, keys):
    flip(folder / GRAPH)
    reseal(folder, GRAPH)


def compile_code(folder, keys):
    (folder / "deploykit" / "__pycache__").mkdir(parents=True)
    (folder / "deploykit" / "__pycache__" / "signing.cpython-311.pyc").write_bytes(b"")


def swap(folder, keys):
    """Puts the signature there that the same owner gave to another artifact."""
    other = Path(shutil.copytree(folder, folder.with_name("other")))
    forge(other, keys)
    signing.sign(other, keys[0])
    shutil.copy(other / SIGNATURE, folder / SIGNATURE)


def own_key(folder, keys):
    """Signs with a key of one's own."""
    private, _ = write_pair(folder.with_name("stranger"), ec.generate_private_key(ec.SECP256R1()))
    signing.sign(folder, private)


def graft(folder, keys):
    """Claims the right key, over a payload that it has not signed."""
    text = (folder / SIGNATURE).read_text()
    own_key(folder, keys)
    strange = (folder / SIGNATURE).read_text()
    hints = [part.split('"hint":')[1].split('"')[1] for part in (text, strange)]
    (folder / SIGNATURE).write_text(strange.replace(hints[1], hints[0]))


BREAKS = {
    "changed": (lambda folder, keys: flip(folder / GRAPH), r"model\.onnx was changed"),
    "changed, and the manifest with it": (forge, r"not as the owner of .*public\.pem signed it.*Hash mismatch"),
    "added": (lambda folder, keys: (folder / "extra.py").touch(), r"does not name: extra\.py"),
    "hidden": (lambda folder, keys: (folder / ".gitignore").touch(), r"does not name: \.gitignore"),
    "compiled": (compile_code, "compiled code"),
    "gone": (lambda folder, keys: (folder / GRAPH).unlink(), r"lacks the file model\.onnx"),
    "unsigned": (lambda folder, keys: (folder / SIGNATURE).unlink(), r"not signed.*deploykit sign"),
    "another owner": (own_key, "Key mismatch"),
    "another owner who hides": (graft, "not as the owner"),
    "of another artifact": (swap, "Signature mismatch"),
    "empty": (lambda folder, keys: (folder / SIGNATURE).write_text(""), "not as the owner"),
    "not a signature": (lambda folder, keys: (folder / SIGNATURE).write_text("{}"), "not as the owner"),
    "a link": (lambda folder, keys: (folder / "link").symlink_to(folder / GRAPH), "does not name: link"),
}
