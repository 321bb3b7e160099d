//! The keys images have: plain ones, odd ones, and paths that only look as if they were to move.

/// What follows the prefix in the paths of the odd images: any of these is a key S3 allows.
pub(super) fn odd_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "with space.png",
        " leading and trailing ",
        "a+b.png",
        "100%.png",
        "percent%20twenty.png",
        "percent%2Fslash.png",
        "hash#tag.png",
        "question?mark.png",
        "question?versionId=1",
        "and&equals=sign.png",
        "it's.png",
        "\"quoted\".png",
        "back\\slash.png",
        "back\\\\slashes.png",
        "café.png",
        "cafe\u{301}.png",
        "漢字.png",
        "🪣🚒.png",
        "double//slash.png",
        "up/../down.png",
        "here/./there.png",
        "folder/",
        "control\u{1}character.png",
        "new\nline.png",
        "tab\there.png",
        "under_score.png",
        "underXscore.png",
        "100%.pn_",
        "/leading-slash.png",
        "image/image/again.png",
        "semi;colon,comma:colon.png",
        "<angle>[square]{curly}.png",
        "$dollar!star*(round)~tilde@at^caret`tick|pipe.png",
        "$(command);--drop table images;'",
        ".",
        "..hidden",
    ]
    .map(str::to_owned)
    .to_vec();
    // Nine hundred bytes of a kilobyte's worth of key.
    keys.push(format!("{}.png", "long-".repeat(180)));
    keys
}

/// Paths outside the prefix `old` that resemble it.
pub(super) fn paths_outside_prefix(old: &str) -> Vec<String> {
    let name = old.trim_end_matches('/');
    let upper = old.to_uppercase();
    vec![
        "logo/a.png".to_owned(),
        "logo/b.png".to_owned(),
        name.to_owned(),
        format!("{upper}shout.png"),
        format!("x{old}inside.png"),
        format!("/{old}rooted.png"),
        format!("{name}s/plural.png"),
        format!("{name}_/wildcard.png"),
        format!("other/{old}nested.png"),
    ]
}
