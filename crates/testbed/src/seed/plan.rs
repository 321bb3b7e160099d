//! Which rows there are to be, and what their objects are besides their bytes.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::{SeedOptions, SeededRow, SeededRowKind, keys};
use crate::application::{Application, ApplicationIdType, KeySpelling, ObjectProperties};

/// Rows of all kinds in random order. Their objects' hashes are left empty.
pub(super) fn plan_rows(
    application: &Application,
    seed: &SeedOptions,
    random: &mut Rng,
) -> Vec<SeededRow> {
    let mut planned = plan_paths(application, seed);
    random.shuffle(&mut planned);
    let mut id = 0;
    let mut rows: Vec<SeededRow> = planned
        .into_iter()
        .zip(0..)
        .map(|((path, kind), number)| {
            // Gaps, as deleted rows leave them.
            id += random.u64(1..4);
            let id = id_text(application.table.id_type, id, random);
            let mut properties = if kind == SeededRowKind::Missing {
                ObjectProperties::default()
            } else {
                random_properties(random)
            };
            if !seed.has_tags {
                properties.tags.clear();
            }
            SeededRow {
                id,
                path,
                kind,
                shared: false,
                sha256: String::new(),
                properties,
                has_companions: kind == SeededRowKind::ToMove && number % 3 == 0,
            }
        })
        .collect();
    share_objects(application, &mut rows, seed.shared);
    rows
}

/// The paths of all rows with their kinds.
fn plan_paths(application: &Application, seed: &SeedOptions) -> Vec<(String, SeededRowKind)> {
    let Application {
        old_prefix: old,
        new_prefix: new,
        ..
    } = application;
    let to_move = seed
        .images
        .saturating_sub(seed.missing + seed.already_moved);
    let odd = if seed.odd_keys {
        keys::odd_keys()
    } else {
        Vec::new()
    };
    let plain = (1..).map(|number| format!("avatar-{number}.png"));
    let outside = if seed.outside {
        keys::paths_outside_prefix(old)
    } else {
        Vec::new()
    };
    let moving = odd.into_iter().chain(plain).take(to_move);
    let spelling = application.spelling;
    let spelled = moving
        .zip(0..)
        .map(|(key, number)| spelling.spell(&key, number));
    let moving = spelled.map(|rest| (format!("{old}{rest}"), SeededRowKind::ToMove));
    let missing =
        (1..=seed.missing).map(|n| (format!("{old}missing-{n}.png"), SeededRowKind::Missing));
    let moved = (1..=seed.already_moved)
        .map(|n| (format!("{new}moved-{n}.png"), SeededRowKind::AlreadyMoved));
    let outside = outside
        .into_iter()
        .map(|path| (path, SeededRowKind::Outside));
    moving.chain(missing).chain(moved).chain(outside).collect()
}

/// Gives the last `count` rows to move the objects of the first ones, by their paths or by other spellings.
fn share_objects(application: &Application, rows: &mut [SeededRow], count: usize) {
    let movable: Vec<usize> = (0..rows.len())
        .filter(|&at| rows[at].kind == SeededRowKind::ToMove)
        .collect();
    let pairs = movable.iter().zip(movable.iter().rev());
    for (&owner, &sharer) in pairs.take(count.min(movable.len() / 2)) {
        rows[owner].shared = true;
        let id = std::mem::take(&mut rows[sharer].id);
        let path = match application.spelling {
            KeySpelling::Literal => rows[owner].path.clone(),
            _ => format!("{}?again", rows[owner].path),
        };
        rows[sharer] = SeededRow {
            id,
            path,
            ..rows[owner].clone()
        };
    }
}

fn id_text(id_type: ApplicationIdType, number: u64, random: &mut Rng) -> String {
    match id_type {
        ApplicationIdType::BigInt | ApplicationIdType::Int => number.to_string(),
        ApplicationIdType::Text => format!("user:{number}"),
        ApplicationIdType::Uuid => {
            let hex = format!("{:032x}", random.u128(..));
            format!(
                "{}-{}-{}-{}-{}",
                &hex[..8],
                &hex[8..12],
                &hex[12..16],
                &hex[16..20],
                &hex[20..]
            )
        }
    }
}

fn random_properties(random: &mut Rng) -> ObjectProperties {
    let some = |random: &mut Rng, value: &str| random.bool().then(|| value.to_owned());
    let user = random.u32(..).to_string();
    let mut metadata = BTreeMap::from([("uploaded-by".to_owned(), format!("user-{user}"))]);
    if random.bool() {
        metadata.insert(
            "original-name".to_owned(),
            format!("IMG {user}; (1)=\"final\".png"),
        );
    }
    let mut tags = BTreeMap::new();
    if random.bool() {
        tags.insert("user".to_owned(), user);
        tags.insert("reviewed by".to_owned(), "a+b : c=d/e".to_owned());
    }
    ObjectProperties {
        content_type: Some("image/png".to_owned()),
        cache_control: Some(format!("public, max-age={}", random.u32(60..86_400))),
        content_encoding: (random.u8(..) < 32).then(|| "identity".to_owned()),
        content_disposition: some(random, "attachment; filename=\"avatar.png\""),
        metadata,
        tags,
    }
}
