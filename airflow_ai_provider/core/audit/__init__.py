"""The audit trail: who asked which model for what, in a form in which any later change shows.

    Trail ──emit──▶ <writer>-<n>.open ──close──▶ <writer>-<n>.sealed ──seal_trail──▶ archive, manifest ──▶ pin

- ``trail``    one writer per process; hash-chained events, durable at ``flush``
- ``recover``  seals what a killed process left open
- ``seal``     the single sealer: archive, manifest, pin; run on a schedule, also when nothing happened
- ``verify``   reads everything back and names the first record that is not what was written

What each guard proves: the chain orders the records of a segment; a seal closes it; a signed manifest fixes its
bytes in the archive; a pin, kept in a database the sealer's host cannot rewrite, fixes the manifest; the registry of
opened segments shows one that never arrived. The chain takes no key: until a segment is in a manifest, anyone who may
write the spool folder can replace its tail or recompute it. Seal often, and compare event ids with the ledger.
"""
