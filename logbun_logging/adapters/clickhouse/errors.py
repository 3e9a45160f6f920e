"""The driver's errors as this library's: :func:`translated` tells outages from refused rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from logbun_logging.errors import AdapterUnavailableError, RejectedEventsError

__all__ = ["translated"]

#: Server errors that speak of the connection, the login, the table, or of what the server can take
#: now: waiting or an operator helps, another batch would fare no better.
_OUTAGES: Final = frozenset(
    {
        16,  # NO_SUCH_COLUMN_IN_TABLE: somebody has changed the table
        60,  # UNKNOWN_TABLE
        74,  # CANNOT_READ_FROM_FILE_DESCRIPTOR
        75,  # CANNOT_WRITE_TO_FILE_DESCRIPTOR
        76,  # CANNOT_OPEN_FILE
        81,  # UNKNOWN_DATABASE
        159,  # TIMEOUT_EXCEEDED
        160,  # TOO_SLOW
        164,  # READONLY
        173,  # CANNOT_ALLOCATE_MEMORY
        191,  # UNKNOWN_ROLE
        192,  # UNKNOWN_USER
        193,  # WRONG_PASSWORD
        194,  # REQUIRED_PASSWORD
        195,  # IP_ADDRESS_NOT_ALLOWED
        201,  # QUOTA_EXCEEDED
        202,  # TOO_MANY_SIMULTANEOUS_QUERIES
        203,  # NO_FREE_CONNECTION
        209,  # SOCKET_TIMEOUT
        210,  # NETWORK_ERROR
        216,  # QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING
        218,  # TABLE_IS_DROPPED
        225,  # NO_ZOOKEEPER
        236,  # ABORTED
        241,  # MEMORY_LIMIT_EXCEEDED
        242,  # TABLE_IS_READ_ONLY
        243,  # NOT_ENOUGH_SPACE
        252,  # TOO_MANY_PARTS
        279,  # ALL_CONNECTION_TRIES_FAILED
        285,  # TOO_FEW_LIVE_REPLICAS
        286,  # UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
        289,  # REPLICA_IS_NOT_IN_QUORUM
        319,  # UNKNOWN_STATUS_OF_INSERT
        394,  # QUERY_WAS_CANCELLED
        439,  # CANNOT_SCHEDULE_TASK
        473,  # DEADLOCK_AVOIDED
        497,  # ACCESS_DENIED
        499,  # S3_ERROR
        516,  # AUTHENTICATION_FAILED
        519,  # ALL_REPLICAS_LOST
        701,  # CLUSTER_DOESNT_EXIST
        745,  # SERVER_OVERLOADED
        999,  # KEEPER_EXCEPTION
    }
)

#: Server errors that speak of the rows.
_REFUSALS: Final = frozenset(
    {
        6,  # CANNOT_PARSE_TEXT
        25,  # CANNOT_PARSE_ESCAPE_SEQUENCE
        26,  # CANNOT_PARSE_QUOTED_STRING
        27,  # CANNOT_PARSE_INPUT_ASSERTION_FAILED
        33,  # CANNOT_READ_ALL_DATA
        41,  # CANNOT_PARSE_DATETIME
        53,  # TYPE_MISMATCH
        69,  # ARGUMENT_OUT_OF_BOUND
        117,  # INCORRECT_DATA
        131,  # TOO_LARGE_STRING_SIZE
        349,  # CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
        469,  # VIOLATED_CONSTRAINT
    }
)

_LONGEST_MESSAGE: Final = 500


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Raise what the driver raises as this library's errors, with *name* in front.

    A server error that is neither an outage nor a refusal is raised as it is: who delivers tries it
    again, and then looks for the event that causes it.
    """
    from clickhouse_connect.driver.exceptions import (  # noqa: PLC0415 - imported by the adapter's constructor
        ClickHouseError,
        DataError,
        Error,
    )

    try:
        yield
    except DataError as error:
        raise RejectedEventsError(f"{name}: {_text(error)}") from error
    except Error as error:
        if error.code in _REFUSALS:
            raise RejectedEventsError(f"{name}: {_text(error)}") from error
        if error.code is None or error.code in _OUTAGES:
            raise AdapterUnavailableError(f"{name}: {_text(error)}") from error
        raise
    except (ClickHouseError, OSError) as error:
        raise AdapterUnavailableError(f"{name}: {_text(error)}") from error
    except UnicodeEncodeError as error:  # a lone surrogate
        raise RejectedEventsError(f"{name}: {error}") from error


#: What the driver adds to a message: the request's line, which has the parameters of the query in
#: it and so somebody's data, and what is said twice.
_NOISE: Final = re.compile(
    r"^Received ClickHouse exception, code: \d+, server response: | \(for url \S+\)$|with url: \S+ "
)


def _text(error: BaseException) -> str:
    text = _NOISE.sub("", str(error))
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."
