"""The errors a user can meet.

    AIProviderError
    ├── TransientError          trying again may help
    │   ├── VendorTransientError    the vendor refused or dropped one attempt
    │   │   └── ParameterRefused        it does not take a parameter, which is left out from now on
    │   ├── DeploymentResting       a deployment fails for everybody: another one is asked instead
    │   │   └── DeploymentGivenUp       it fails every call of a job alike: the job asks it no more
    │   ├── JobGivenUpForNow        calls fail alike, for a reason that may pass: the rest of the job is not sent
    │   ├── JobStopped              the job was asked to stop
    │   ├── LedgerUnavailable       the ledger database cannot be reached: no call is made
    │   └── StoreUnavailable        a response store, vector store or archive cannot be reached
    └── PermanentError          trying again will not help until something is changed
        ├── VendorPermanentError    the vendor will never accept this request
        ├── JobGivenUp              calls or answers fail alike, and the next would too: the rest of the job is not sent
        ├── PolicyError             policy.yaml is wrong, or asks for what cannot be
        ├── SourceError             input rows cannot be read
        ├── SinkError               output rows cannot be written
        ├── PromptError             a prompt template is wrong
        ├── RoutingError            no deployment may have a row: no call is made
        ├── PrivacyError            personal data could not be masked: no call is made
        ├── KeyringError            a key is missing or unusable
        ├── LedgerError             the ledger refuses (no budget, fenced off, wrong schema)
        │   └── DeploymentStopped       a deployment charged more than its bound: nothing is sent to it
        └── AuditError              the trail cannot be written or read
    BudgetExceeded              there is no room left, and no call in flight could free any

Every message names the place, says what was expected, and what to do. No message holds a secret,
a prompt, or a value of a row other than its key.
"""

from __future__ import annotations


class AIProviderError(Exception):
    """Base of every error raised by this package."""


class TransientError(AIProviderError):
    """Trying again may help."""


class PermanentError(AIProviderError):
    """Trying again will not help until something is changed."""


class VendorError(AIProviderError):
    """One attempt at a vendor failed.

    ``kind`` is a short stable name for tables (``rate_limited``, ``timeout``, …). ``billed`` says whether the
    vendor may have charged for the attempt: if it may, the whole hold is captured until it is known.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        http_status: int | None = None,
        billed: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.http_status = http_status
        self.billed = billed
        self.retry_after = retry_after


class VendorTransientError(VendorError, TransientError):
    """408, 409, 429, 5xx, time-outs and connection errors."""


class ParameterRefused(VendorTransientError):
    """The vendor does not take a parameter, which is left out from now on: the request may be sent again at once."""


class VendorPermanentError(VendorError, PermanentError):
    """400, 401, 402, 403, 404, 422, exhausted quota, content policy, context window."""


class DeploymentResting(TransientError):
    """A deployment's circuit is open: it failed too often, and nothing but probes is sent to it until it answers."""


class DeploymentGivenUp(DeploymentResting):
    """A deployment failed calls of a job alike, so that the next would only fail as well: the job asks it no more."""


class JobGivenUpForNow(TransientError):
    """No deployment of a tier can be reached where the job looks for it; trying again later may help."""


class JobStopped(TransientError):
    """The job was asked to stop; what was finished is kept, and the next try goes on from there."""

    def __init__(self, message: str = "stopped on request; a retry goes on from there") -> None:
        super().__init__(message)


class LedgerUnavailable(TransientError):
    """The ledger database cannot be reached; no call is made without it."""


class StoreUnavailable(TransientError):
    """A response store, vector store or archive cannot be reached."""


class JobGivenUp(PermanentError):
    """The calls or answers of a job fail alike, and the next would too: nothing more is sent until something is mended.

    What was answered is kept; the other rows are tried by the next try of the task.
    """


class PolicyError(PermanentError):
    """policy.yaml is wrong, or a task asks for what the policy does not hold."""


class SourceError(PermanentError):
    """Input rows cannot be read."""


class SinkError(PermanentError):
    """Output rows cannot be written."""


class PromptError(PermanentError):
    """A prompt template is wrong, or names a column the rows do not have."""


class RoutingError(PermanentError):
    """No deployment of a row's tier can take the row, or may have it; no call is made.

    ``reason`` is a short stable name for tables: what keeps the row from all of them, or ``no_deployment`` where
    different things do.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class PrivacyError(PermanentError):
    """Personal data could not be masked or restored; the call is not made."""


class KeyringError(PermanentError):
    """A key is missing or unusable."""


class LedgerError(PermanentError):
    """The ledger refuses: no budget, fenced off by a successor, wrong schema."""


class DeploymentStopped(LedgerError):
    """A deployment charged more than the upper bound it was held for; nothing is sent to it until it is resumed."""


class AuditError(PermanentError):
    """The audit trail cannot be written, sealed or read."""


class BudgetExceeded(AIProviderError):
    """There is no room in a budget, and no call in flight could still free any."""
