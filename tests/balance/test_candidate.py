from mailbalancer.balance import candidate
from mailbalancer.ipc.board import Availability


def test_availability_means_the_same_here_and_on_the_board():
    assert candidate.CLOSED == Availability.CLOSED
    assert candidate.RETURNING == Availability.RETURNING
    assert candidate.READY == Availability.READY
    assert len(Availability) == 3
