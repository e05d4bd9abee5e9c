"""Checks the proof that an event is in an audit trail: python verify_proof.py PROOF.json VERIFY_KEY.pem

Stands alone: it needs the proof, the sealer's public key, and the package `cryptography`; nothing of the program that
made either. It shows that whoever holds the signing key stated a Merkle root (RFC 6962) under which this very event is.
Exit status: 0 the event is proved, 1 it is not, 2 could not run.
"""

import hashlib
import json
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

TAG = b"airflow-ai audit manifest 1\0"


class NotProved(Exception):
    """The proof does not hold; the message says where."""


def canonical(value):
    """Canonical JSON (RFC 8785) of strings, integers and objects with ASCII names, which is all a proof holds."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def leaf(data):
    return hashlib.sha256(b"\x00" + data).digest()


def node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(value, index, count, path):
    """The root that a path leads to (RFC 9162, section 2.1.3.2)."""
    last = count - 1
    if not 0 <= index <= last:
        raise NotProved("a place lies outside its tree")
    for beside in path:
        if last == 0:
            raise NotProved("a path is longer than its tree is high")
        if index % 2 or index == last:
            value = node(bytes.fromhex(beside), value)
            while index and not index % 2:
                index, last = index // 2, last // 2
        else:
            value = node(value, bytes.fromhex(beside))
        index, last = index // 2, last // 2
    if last:
        raise NotProved("a path is shorter than its tree is high")
    return value.hex()


def check_signature(key, signature, data):
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            key.verify(signature, data, ec.ECDSA(SHA256()))
        elif isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
            key.verify(signature, data, padding.PSS(padding.MGF1(SHA256()), padding.PSS.AUTO), SHA256())
        else:
            raise NotProved("the key is none that signs manifests: Ed25519, NIST P-256 or RSA")
    except InvalidSignature:
        raise NotProved("the signature is not of this statement and key") from None


def key_id(key):
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:16]


def check(proof, key):
    """Returns the event. Raises NotProved."""
    if proof["format"] != "airflow-ai audit proof 1":
        raise NotProved("this is no proof, or one of a later version")
    segment, statement = proof["segment"], proof["statement"]
    record, entry = proof["record"], proof["entry"]
    if root(leaf(proof["event"].encode()), record["index"], segment["count"], record["path"]) != segment["records"]:
        raise NotProved("the event is not under the root of its segment's records")
    if root(leaf(canonical(segment)), entry["index"], statement["count"], entry["path"]) != statement["root"]:
        raise NotProved("the segment is not under the root of the statement")
    if statement["key_id"] != key_id(key):
        raise NotProved(f"the statement was signed with key {statement['key_id']}, and this key is {key_id(key)}")
    check_signature(key, bytes.fromhex(proof["signature"]), TAG + canonical(statement))
    event = json.loads(proof["event"])
    writer, _, number = event["event.id"].rpartition("-")
    if writer != segment["writer"] or not number.isdecimal():
        raise NotProved("the event does not belong to its segment's writer")
    return event


def main(arguments):
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with open(arguments[0], encoding="utf-8") as file:
            proof = json.load(file)
        with open(arguments[1], "rb") as file:
            key = load_pem_public_key(file.read())
    except (OSError, ValueError) as error:
        print(f"could not run: {error}", file=sys.stderr)
        return 2
    try:
        event = check(proof, key)
    except NotProved as fault:
        print(f"not proved: {fault}")
        return 1
    except (KeyError, TypeError, ValueError, AttributeError):
        print("not proved: the file is not a whole proof")
        return 1
    statement = proof["statement"]
    print(f"proved: event {event['event.id']} ({event['event.action']}, {event['@timestamp']})")
    print(f"is in manifest {statement['sequence']} of trail {statement['trail']}, stated at {statement['created_at']}")
    print(f"and signed with key {statement['key_id']}. Compare the key with the one its owner gave you.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
