use bucket_brigade_common::ledger::move_ledger::CurrentRow;
use bucket_brigade_common::message::MoveTask;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::row_id::RowId;

use super::*;

const NEEDS_MOVE: RowState = RowState::NeedsMove {
    failed_for_good: false,
    copy_etag: None,
};

fn first_delivery() -> MoveProtocol {
    MoveProtocol::new(1, Some(5), "avatar/a".into())
}

fn redelivery() -> MoveProtocol {
    MoveProtocol::new(2, Some(5), "avatar/a".into())
}

fn copied() -> CopiedObject {
    CopiedObject::new("e")
}

fn failure_cause(permanent: bool) -> FailureCause {
    FailureCause {
        code: "NoSuchKey".into(),
        message: "gone".into(),
        permanent,
    }
}

fn changed() -> RowState {
    RowState::Changed {
        path: "elsewhere/a".into(),
        is_in_scope: false,
    }
}

fn orphan() -> OrphanedCopy {
    OrphanedCopy {
        destination_key: "avatar/a".into(),
        etag: "e".into(),
    }
}

/// Feeds the events and the end of a lease that held, and returns the end.
fn end(protocol: MoveProtocol, events: &[Event]) -> Action {
    let mut events = events.to_vec();
    events.push(Event::LeaseEnded { held: true });
    drive(protocol, &events)
}

/// Feeds the events to the protocol and returns its last action.
fn drive(mut protocol: MoveProtocol, events: &[Event]) -> Action {
    let steps: Vec<Action> = events
        .iter()
        .map(|event| protocol.next(event.clone()))
        .collect();
    steps.last().unwrap().clone()
}

/// The events of a row that asks for its move, and what comes then.
fn copying(more: &[Event]) -> Vec<Event> {
    [&[Event::Decoded, Event::RowRead(NEEDS_MOVE)], more].concat()
}

#[test]
fn the_way_of_most_images() {
    let mut protocol = first_delivery();
    assert_eq!(protocol.next(Event::Decoded), Action::ReadRow);
    assert_eq!(protocol.next(Event::RowRead(NEEDS_MOVE)), Action::Copy);
    assert_eq!(
        protocol.next(Event::Copied(copied())),
        Action::Commit(copied(), Duration::ZERO)
    );
    assert_eq!(protocol.next(Event::Committed), Action::EndLease);
    assert_eq!(
        protocol.next(Event::LeaseEnded { held: true }),
        Action::Delete
    );
}

#[test]
fn a_lost_lease_is_never_acknowledged() {
    let lost = Event::LeaseEnded { held: false };
    let committed = copying(&[Event::Copied(copied()), Event::Committed, lost.clone()]);
    assert_eq!(drive(first_delivery(), &committed), Action::Abandon);
    let interrupted = [Event::Decoded, Event::Interrupted, lost];
    assert_eq!(drive(first_delivery(), &interrupted), Action::Abandon);
}

#[test]
fn a_duplicate_is_settled_without_a_copy() {
    let events = [Event::Decoded, Event::RowRead(RowState::Moved)];
    let step = drive(redelivery(), &events);
    assert_eq!(step, Action::RecordSettlement(RowState::Moved, None));
    let events = [&events[..], &[Event::Recorded]].concat();
    assert_eq!(end(redelivery(), &events), Action::Delete);
}

/// What stands there at a first delivery is the application's, for all that is known; without a source, at any.
#[test]
fn a_change_checks_for_a_lost_copy() {
    let found = CopiedObject {
        is_found: true,
        ..copied()
    };
    for (delivery, lost_copy) in [
        (first_delivery as fn() -> MoveProtocol, None),
        (redelivery, Some(orphan())),
    ] {
        let events = [Event::Decoded, Event::RowRead(changed())];
        assert_eq!(drive(delivery(), &events), Action::Compare);
        let compared = |event| drive(delivery(), &[&events[..], &[event]].concat());
        let settled = |orphan| Action::RecordSettlement(changed(), orphan);
        let same = Event::Compared(DestinationState::Same(found.clone()));
        assert_eq!(compared(same), settled(lost_copy));
        // Written before the message was sent, it is none of ours.
        let older = CopiedObject {
            modified_seconds: Some(-61),
            ..found.clone()
        };
        let sent = SystemTime::UNIX_EPOCH;
        let same = Event::Compared(DestinationState::Same(older));
        let sent = delivery().with_sent_at(Some(sent), sent);
        assert_eq!(drive(sent, &[&events[..], &[same]].concat()), settled(None));
        for nothing in [
            Event::Compared(DestinationState::WithoutSource(found.clone())),
            Event::Compared(DestinationState::Empty),
            Event::Compared(DestinationState::Different("bytes".into())),
            Event::CopyFailed(failure_cause(true)),
        ] {
            assert_eq!(compared(nothing), settled(None));
        }
    }
}

#[test]
fn without_a_source_the_copy_on_record_is_committed() {
    let set_back = Event::RowRead(RowState::NeedsMove {
        failed_for_good: false,
        copy_etag: Some("e".into()),
    });
    let alone = |etag: &str| {
        Event::Compared(DestinationState::WithoutSource(CopiedObject {
            etag: etag.into(),
            is_source_gone: true,
            ..copied()
        }))
    };
    let commit = Action::Commit(
        CopiedObject {
            is_source_gone: true,
            ..copied()
        },
        Duration::ZERO,
    );
    for met in [
        Event::CopyFailed(failure_cause(true)),
        Event::DestinationExists,
    ] {
        let events = [Event::Decoded, set_back.clone(), met];
        assert_eq!(drive(first_delivery(), &events), Action::Compare);
        let sent = SystemTime::UNIX_EPOCH;
        let aged = || first_delivery().with_sent_at(Some(sent), sent + UPLOAD_PATIENCE);
        let after = |more: &[Event]| drive(aged(), &[&events[..], more].concat());
        assert_eq!(after(&[alone("e")]), commit);
        let third = MoveProtocol::new(3, Some(5), "avatar/a".into());
        let last = MoveProtocol::new(2, Some(2), "avatar/a".into());
        for delivery in [third, last] {
            let alone = [&events[..], &[alone("e")]].concat();
            assert_eq!(drive(delivery, &alone), commit);
        }
        // The application may have saved the row a moment before its upload.
        let first = [&events[..], &[alone("e")]].concat();
        for delivery in [first_delivery(), redelivery()] {
            let waits = Action::Release(UPLOAD_PATIENCE);
            assert_eq!(end(delivery, &first), waits);
        }
        let failed = after(&[alone("other"), set_back.clone()]);
        assert!(
            matches!(&failed, Action::RecordFailure(cause, _) if cause.code == "NoSuchKey" && cause.permanent),
            "{failed:?}"
        );
    }
    let vanished = [
        Event::Decoded,
        set_back.clone(),
        Event::CopyFailed(failure_cause(true)),
        Event::Compared(DestinationState::Empty),
        set_back,
    ];
    let failed = Action::RecordFailure(failure_cause(true), None);
    assert_eq!(drive(first_delivery(), &vanished), failed);
}

#[test]
fn an_object_at_the_destination_is_compared() {
    let events = copying(&[Event::DestinationExists]);
    assert_eq!(drive(first_delivery(), &events), Action::Compare);
    let compared = |found| {
        let found = Event::Compared(found);
        drive(first_delivery(), &[&events[..], &[found]].concat())
    };
    assert_eq!(
        compared(DestinationState::Same(copied())),
        Action::Commit(copied(), Duration::ZERO)
    );
    assert_eq!(
        compared(DestinationState::Different("bytes".into())),
        Action::ReadRow
    );
    assert_eq!(compared(DestinationState::Empty), Action::Copy);
}

#[test]
fn a_store_that_refuses_without_a_reason_is_a_failure() {
    let mut protocol = first_delivery();
    protocol.next(Event::RowRead(NEEDS_MOVE));
    for _ in 0..MAX_VANISHED_OBJECTS {
        assert_eq!(protocol.next(Event::DestinationExists), Action::Compare);
        let vanished = Event::Compared(DestinationState::Empty);
        assert_eq!(protocol.next(vanished), Action::Copy);
    }
    protocol.next(Event::DestinationExists);
    assert_eq!(
        protocol.next(Event::Compared(DestinationState::Empty)),
        Action::ReadRow
    );
    let step = protocol.next(Event::RowRead(NEEDS_MOVE));
    assert!(matches!(step, Action::RecordFailure(cause, _) if cause.code == "DestinationVanished"));
}

#[test]
fn what_was_not_committed_is_found_changed_with_an_orphan_or_done() {
    for (row, orphan) in [(RowState::Deleted, Some(orphan())), (RowState::Moved, None)] {
        let read = Event::RowRead(row.clone());
        let events = copying(&[Event::Copied(copied()), Event::NotCommitted, read]);
        let settled = Action::RecordSettlement(row, orphan);
        assert_eq!(drive(first_delivery(), &events), settled);
    }
}

#[test]
fn a_locked_row_is_retried_and_the_copy_is_not() {
    let mut protocol = first_delivery();
    protocol.next(Event::Decoded);
    protocol.next(Event::RowRead(NEEDS_MOVE));
    protocol.next(Event::Copied(copied()));
    for _ in 0..MAX_SKIPPED_COMMITS {
        assert_eq!(protocol.next(Event::NotCommitted), Action::ReadRow);
        assert!(matches!(
            protocol.next(Event::RowRead(NEEDS_MOVE)),
            Action::Commit(..)
        ));
    }
    protocol.next(Event::NotCommitted);
    let step = protocol.next(Event::RowRead(NEEDS_MOVE));
    assert!(
        matches!(step, Action::RecordFailure(cause, Some(copy)) if cause.code == "RowLocked" && copy == orphan())
    );
    assert_eq!(
        end(protocol, &[Event::Recorded]),
        Action::Release(REDELIVERY_BACKOFF.delay_ceiling(1))
    );
}

#[test]
fn an_object_that_stood_there_may_be_anothers() {
    let found = CopiedObject {
        is_found: true,
        ..copied()
    };
    let refused = |met: Event| {
        let refusal = Event::CommitRefused(failure_cause(true));
        let met = [met, refusal, Event::RowRead(NEEDS_MOVE)];
        drive(first_delivery(), &copying(&met))
    };
    let failed = |orphan| Action::RecordFailure(failure_cause(true), orphan);
    assert_eq!(refused(Event::Copied(copied())), failed(Some(orphan())));
    let same = Event::Compared(DestinationState::Same(found));
    assert_eq!(refused(same), failed(None));
}

#[test]
fn a_failure_is_recorded_only_if_the_row_still_asks_for_the_move() {
    let failing = |row| copying(&[Event::CopyFailed(failure_cause(true)), Event::RowRead(row)]);
    assert_eq!(
        drive(first_delivery(), &failing(NEEDS_MOVE)),
        Action::RecordFailure(failure_cause(true), None)
    );
    // The copy's answer may have been lost.
    let mut deleted = failing(RowState::Deleted);
    assert_eq!(drive(first_delivery(), &deleted), Action::Compare);
    deleted.push(Event::Compared(DestinationState::Empty));
    assert_eq!(
        drive(first_delivery(), &deleted),
        Action::RecordSettlement(RowState::Deleted, None)
    );
    let mut settled = failing(RowState::Moved);
    settled.push(Event::Recorded);
    assert_eq!(end(first_delivery(), &settled), Action::Delete);
}

fn failed_events(permanent: bool) -> Vec<Event> {
    let failed = Event::CopyFailed(failure_cause(permanent));
    copying(&[failed, Event::RowRead(NEEDS_MOVE), Event::Recorded])
}

#[test]
fn a_failed_message_is_released_and_never_acknowledged() {
    let no_queue = MoveProtocol::new(1, None, "avatar/a".into());
    for (protocol, permanent, seconds) in [
        (first_delivery(), false, 1),
        (redelivery(), false, 2),
        (no_queue, true, 1),
    ] {
        let released = Action::Release(Duration::from_secs(seconds));
        assert_eq!(end(protocol, &failed_events(permanent)), released);
    }
}

/// Whatever comes between: nothing but a confirmed letter leads to the delete.
#[test]
fn what_failed_for_good_is_deleted_only_once_it_is_a_dead_letter() {
    let events = failed_events(true);
    assert_eq!(drive(first_delivery(), &events), Action::SendDeadLetter);
    let sent = |event| end(first_delivery(), &[&events[..], &[event]].concat());
    let confirmed = |confirmed| sent(Event::DeadLetterSent { confirmed });
    assert_eq!(confirmed(true), Action::Delete);
    assert_eq!(confirmed(false), Action::Release(Duration::ZERO));
    let missing = sent(Event::DeadLetterQueueMissing);
    assert_eq!(missing, Action::Release(Duration::from_mins(1)));
    assert_eq!(sent(Event::Interrupted), Action::Release(Duration::ZERO));
    for (receives, seconds) in [(5, 0), (6, 1), (8, 4), (100, 300)] {
        let protocol = MoveProtocol::new(receives, Some(5), "avatar/a".into());
        let unconfirmed = [Event::DeadLetterSent { confirmed: false }];
        let events = [&events[..], &unconfirmed].concat();
        let delay = Duration::from_secs(seconds);
        assert_eq!(end(protocol, &events), Action::Release(delay), "{receives}");
    }
    let lost = [
        Event::DeadLetterSent { confirmed: true },
        Event::LeaseEnded { held: false },
    ];
    let lost = drive(first_delivery(), &[&events[..], &lost].concat());
    assert_eq!(lost, Action::Abandon);
}

#[test]
fn what_failed_for_good_is_not_copied_again_at_redelivery() {
    let hopeless = Event::RowRead(RowState::NeedsMove {
        failed_for_good: true,
        copy_etag: None,
    });
    let events = [Event::Decoded, hopeless];
    assert_eq!(drive(redelivery(), &events), Action::SendDeadLetter);
    let no_queue = MoveProtocol::new(2, None, "avatar/a".into());
    let wait = Duration::from_secs(2);
    assert_eq!(end(no_queue, &events), Action::Release(wait));
    // A first delivery means that it was fed again on purpose.
    assert_eq!(drive(first_delivery(), &events), Action::Copy);
}

#[test]
fn poison_is_recorded_and_left_for_the_dead_letter_queue() {
    let poisoned = || MoveProtocol::new(1, Some(5), String::new());
    assert_eq!(drive(poisoned(), &[Event::Poison]), Action::RecordPoison);
    let step = end(poisoned(), &[Event::Poison, Event::Recorded]);
    assert_eq!(step, Action::Release(Duration::ZERO));
}

#[test]
fn an_interruption_gives_the_message_back_at_once() {
    let end = end(first_delivery(), &copying(&[Event::Interrupted]));
    assert_eq!(end, Action::Release(Duration::ZERO));
}

/// What stands at the destination may be a copy that no row names, and without its source the only one there is.
#[test]
fn a_message_from_before_a_rollback_moves_nothing_and_leaves_the_copy_on_record() {
    let late_commit = [
        Event::Decoded,
        Event::RowRead(NEEDS_MOVE),
        Event::Copied(copied()),
        Event::NotCommitted,
    ];
    for before in [&[Event::Decoded][..], &late_commit] {
        for (found, has_orphan) in [
            (DestinationState::Same(copied()), true),
            (DestinationState::WithoutSource(copied()), false),
            (DestinationState::Empty, false),
        ] {
            let mut events = before.to_vec();
            events.push(Event::RowRead(RowState::Fenced));
            assert_eq!(drive(first_delivery(), &events), Action::Compare);
            events.push(Event::Compared(found));
            match drive(first_delivery(), &events) {
                Action::RecordSettlement(RowState::Fenced, orphan) => {
                    assert_eq!(orphan.is_some(), has_orphan);
                }
                other => panic!("{other:?}"),
            }
            events.push(Event::Recorded);
            assert_eq!(end(first_delivery(), &events), Action::Delete);
        }
    }
}

/// Several ledgers may share the queue, and the next to receive it be the same consumer again.
#[test]
fn a_message_of_another_run_is_not_hidden_for_long() {
    for (receive_count, seconds) in [(1, 1), (2, 2), (20, 8)] {
        let delivery = MoveProtocol::new(receive_count, Some(100), String::new());
        let end = end(delivery, &[Event::OtherRun]);
        assert_eq!(end, Action::Release(Duration::from_secs(seconds)));
    }
}

#[test]
fn rows_are_measured_against_the_message() {
    let rule = PathRule::new("image/", "avatar/", None, None).unwrap();
    let task = MoveTask {
        id: RowId::from_database("1".into()),
        route: rule.route_for("image/a").unwrap(),
        fence: 1,
    };
    let row_at = |path: &str, fence| {
        let row = CurrentRow {
            path: path.into(),
            has_permanent_failure: false,
            copy_etag: None,
            fence,
        };
        RowState::from_row(Some(row), &task, &rule)
    };
    let row = |path| row_at(path, 1);
    assert_eq!(row("image/a"), NEEDS_MOVE);
    assert_eq!(row_at("image/a", 2), RowState::Fenced);
    assert_eq!(row("avatar/a"), RowState::Moved);
    assert_eq!(row_at("avatar/a", 2), RowState::Moved);
    assert_eq!(RowState::from_row(None, &task, &rule), RowState::Deleted);
    let other = RowState::Changed {
        path: "image/b".into(),
        is_in_scope: true,
    };
    assert_eq!(row("image/b"), other);
}
