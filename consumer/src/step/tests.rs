use super::*;

const WANTED: Seen = Seen::Wanted {
    failed_for_good: false,
};

fn first_delivery() -> Protocol {
    Protocol::new(1, true, Some("avatar/a".into()))
}

fn redelivery() -> Protocol {
    Protocol::new(2, true, Some("avatar/a".into()))
}

fn copied() -> Copied {
    Copied {
        etag: "e".into(),
        size_bytes: None,
    }
}

fn trouble(permanent: bool) -> Trouble {
    Trouble {
        code: "NoSuchKey".into(),
        message: "gone".into(),
        permanent,
    }
}

fn changed() -> Seen {
    Seen::Changed {
        path: "elsewhere/a".into(),
        is_in_scope: false,
    }
}

fn orphan() -> Orphan {
    Orphan {
        destination_key: "avatar/a".into(),
        etag: "e".into(),
    }
}

/// Feeds the events and the end of a lease that held, and returns the end.
fn end(protocol: Protocol, events: &[Event]) -> Step {
    let mut events = events.to_vec();
    events.push(Event::LeaseEnded { held: true });
    drive(protocol, &events)
}

/// Feeds the events to the protocol and returns its last answer.
fn drive(mut protocol: Protocol, events: &[Event]) -> Step {
    let steps: Vec<Step> = events
        .iter()
        .map(|event| protocol.next(event.clone()))
        .collect();
    steps.last().unwrap().clone()
}

#[test]
fn the_way_of_most_images() {
    let mut protocol = first_delivery();
    assert_eq!(protocol.next(Event::Understood), Step::Look);
    assert_eq!(protocol.next(Event::Looked(WANTED)), Step::Copy);
    assert_eq!(
        protocol.next(Event::Copied(copied())),
        Step::Commit(copied(), Duration::ZERO)
    );
    assert_eq!(protocol.next(Event::Committed), Step::EndLease);
    assert_eq!(
        protocol.next(Event::LeaseEnded { held: true }),
        Step::Delete
    );
}

#[test]
fn a_lost_lease_is_never_acknowledged() {
    let lost = Event::LeaseEnded { held: false };
    let committed = [
        Event::Understood,
        Event::Looked(WANTED),
        Event::Copied(copied()),
        Event::Committed,
        lost.clone(),
    ];
    assert_eq!(drive(first_delivery(), &committed), Step::LetGo);
    let interrupted = [Event::Understood, Event::Interrupted, lost];
    assert_eq!(drive(first_delivery(), &interrupted), Step::LetGo);
}

#[test]
fn a_duplicate_is_settled_without_a_copy() {
    let step = drive(
        redelivery(),
        &[Event::Understood, Event::Looked(Seen::Moved)],
    );
    assert_eq!(step, Step::Settle(Seen::Moved, None));
    let events = [
        Event::Understood,
        Event::Looked(Seen::Moved),
        Event::Recorded,
    ];
    assert_eq!(end(redelivery(), &events), Step::Delete);
}

#[test]
fn a_change_before_the_first_copy_leaves_nothing_behind() {
    let step = drive(
        first_delivery(),
        &[Event::Understood, Event::Looked(Seen::Gone)],
    );
    assert_eq!(step, Step::Settle(Seen::Gone, None));
}

#[test]
fn a_change_seen_at_a_redelivery_looks_for_the_lost_copy() {
    let events = [Event::Understood, Event::Looked(changed())];
    assert_eq!(drive(redelivery(), &events), Step::Compare);
    let sought = |answer| drive(redelivery(), &[&events[..], &[answer]].concat());
    let settled = |orphan| Step::Settle(changed(), orphan);
    let found = Event::Compared(Destination::Same(copied()));
    assert_eq!(sought(found), settled(Some(orphan())));
    for nothing in [
        Event::Compared(Destination::Empty),
        Event::Compared(Destination::Different("bytes".into())),
        Event::CopyFailed(trouble(true)),
    ] {
        assert_eq!(sought(nothing), settled(None));
    }
}

#[test]
fn what_stands_at_the_destination_is_compared() {
    let events = [
        Event::Understood,
        Event::Looked(WANTED),
        Event::DestinationTaken,
    ];
    assert_eq!(drive(first_delivery(), &events), Step::Compare);
    let compared = |found| {
        let found = Event::Compared(found);
        drive(first_delivery(), &[&events[..], &[found]].concat())
    };
    assert_eq!(
        compared(Destination::Same(copied())),
        Step::Commit(copied(), Duration::ZERO)
    );
    assert_eq!(compared(Destination::Different("bytes".into())), Step::Look);
    assert_eq!(compared(Destination::Empty), Step::Copy);
}

#[test]
fn a_store_that_refuses_without_a_reason_is_a_failure() {
    let mut protocol = first_delivery();
    protocol.next(Event::Looked(WANTED));
    for _ in 0..MOST_VANISHED {
        assert_eq!(protocol.next(Event::DestinationTaken), Step::Compare);
        let vanished = Event::Compared(Destination::Empty);
        assert_eq!(protocol.next(vanished), Step::Copy);
    }
    protocol.next(Event::DestinationTaken);
    assert_eq!(
        protocol.next(Event::Compared(Destination::Empty)),
        Step::Look
    );
    let step = protocol.next(Event::Looked(WANTED));
    assert!(matches!(step, Step::Fail(trouble) if trouble.code == "DestinationVanished"));
}

#[test]
fn a_change_between_copy_and_commit_makes_an_orphan() {
    let events = [
        Event::Understood,
        Event::Looked(WANTED),
        Event::Copied(copied()),
        Event::NotCommitted,
        Event::Looked(Seen::Gone),
    ];
    assert_eq!(
        drive(first_delivery(), &events),
        Step::Settle(Seen::Gone, Some(orphan()))
    );
}

#[test]
fn a_commit_whose_answer_was_lost_is_found_done() {
    let events = [
        Event::Understood,
        Event::Looked(WANTED),
        Event::Copied(copied()),
        Event::NotCommitted,
        Event::Looked(Seen::Moved),
    ];
    assert_eq!(
        drive(first_delivery(), &events),
        Step::Settle(Seen::Moved, None)
    );
}

#[test]
fn a_locked_row_is_tried_again_and_the_copy_is_not() {
    let mut protocol = first_delivery();
    protocol.next(Event::Understood);
    protocol.next(Event::Looked(WANTED));
    protocol.next(Event::Copied(copied()));
    for _ in 0..MOST_SKIPPED_COMMITS {
        assert_eq!(protocol.next(Event::NotCommitted), Step::Look);
        assert!(matches!(
            protocol.next(Event::Looked(WANTED)),
            Step::Commit(..)
        ));
    }
    protocol.next(Event::NotCommitted);
    let step = protocol.next(Event::Looked(WANTED));
    assert!(matches!(step, Step::Fail(trouble) if trouble.code == "RowLocked"));
    assert_eq!(
        end(protocol, &[Event::Recorded]),
        Step::Release(RETRY_LATER.ceiling(1))
    );
}

#[test]
fn a_failure_is_recorded_only_if_the_row_still_asks_for_the_move() {
    let failing = |seen| {
        vec![
            Event::Understood,
            Event::Looked(WANTED),
            Event::CopyFailed(trouble(true)),
            Event::Looked(seen),
        ]
    };
    assert_eq!(
        drive(first_delivery(), &failing(WANTED)),
        Step::Fail(trouble(true))
    );
    assert_eq!(
        drive(first_delivery(), &failing(Seen::Gone)),
        Step::Settle(Seen::Gone, None)
    );
    let mut settled = failing(Seen::Moved);
    settled.push(Event::Recorded);
    assert_eq!(end(first_delivery(), &settled), Step::Delete);
}

#[test]
fn a_failed_message_is_released_and_never_acknowledged() {
    let failed = |protocol, permanent| {
        let events = [
            Event::Understood,
            Event::Looked(WANTED),
            Event::CopyFailed(trouble(permanent)),
            Event::Looked(WANTED),
            Event::Recorded,
        ];
        end(protocol, &events)
    };
    assert_eq!(
        failed(first_delivery(), true),
        Step::Release(Duration::ZERO)
    );
    assert_eq!(
        failed(first_delivery(), false),
        Step::Release(Duration::from_secs(1))
    );
    assert_eq!(
        failed(redelivery(), false),
        Step::Release(Duration::from_secs(2))
    );
    let no_queue = Protocol::new(1, false, Some("avatar/a".into()));
    assert_eq!(
        failed(no_queue, true),
        Step::Release(Duration::from_secs(1))
    );
}

#[test]
fn what_failed_for_good_is_not_copied_again_at_redelivery() {
    let hopeless = Event::Looked(Seen::Wanted {
        failed_for_good: true,
    });
    let events = [Event::Understood, hopeless];
    assert_eq!(end(redelivery(), &events), Step::Release(Duration::ZERO));
    // A first delivery means that somebody fed it again on purpose.
    assert_eq!(drive(first_delivery(), &events), Step::Copy);
}

#[test]
fn poison_is_recorded_and_left_for_the_dead_letter_queue() {
    let poisoned = || Protocol::new(1, true, None);
    assert_eq!(drive(poisoned(), &[Event::Poison]), Step::RecordPoison);
    let step = end(poisoned(), &[Event::Poison, Event::Recorded]);
    assert_eq!(step, Step::Release(Duration::ZERO));
}

#[test]
fn an_interruption_gives_the_message_back_at_once() {
    let events = [Event::Understood, Event::Looked(WANTED), Event::Interrupted];
    assert_eq!(
        end(first_delivery(), &events),
        Step::Release(Duration::ZERO)
    );
}

#[test]
fn rows_are_measured_against_the_message() {
    let rule = PathRule::new("image/", "avatar/", None, None).unwrap();
    let route = rule.route("image/a").unwrap();
    let row = |path: &str| {
        Some(Row {
            path: path.into(),
            failed_for_good: false,
        })
    };
    assert_eq!(Seen::of(row("image/a"), &route, &rule), WANTED);
    assert_eq!(Seen::of(row("avatar/a"), &route, &rule), Seen::Moved);
    assert_eq!(Seen::of(None, &route, &rule), Seen::Gone);
    let other = Seen::Changed {
        path: "image/b".into(),
        is_in_scope: true,
    };
    assert_eq!(Seen::of(row("image/b"), &route, &rule), other);
}
