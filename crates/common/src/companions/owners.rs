//! From a companion back to the images that may have it: a row may name an object that is another row's companion.

use super::{CompanionPattern, CompanionPatterns, Field, Part};

/// What each field of a pattern holds, the last one first.
type FieldTexts<'a> = Vec<(Field, &'a str)>;

impl CompanionPatterns {
    /// What follows the prefix in the keys of an image's companions, by what follows it in the image's.
    pub fn of_image(&self, key: &str) -> impl Iterator<Item = String> {
        self.0.iter().map(move |pattern| pattern.apply(key))
    }

    /// The images of which an object is a companion that no other image has.
    pub fn owners_of(&self, companion: &str) -> impl Iterator<Item = String> {
        let own = self.0.iter().filter(|pattern| pattern.is_own());
        own.flat_map(move |pattern| pattern.owners_of(companion))
    }

    /// Whether an object may be a companion that several images share.
    pub fn may_share(&self, companion: &str) -> bool {
        let mut shared = self.0.iter().filter(|pattern| !pattern.is_own());
        shared.any(|pattern| {
            let mut forms = pattern.forms().into_iter();
            forms.any(|parts| !split(&parts, companion).is_empty())
        })
    }
}

impl CompanionPattern {
    fn owners_of(&self, companion: &str) -> Vec<String> {
        let forms = self.forms();
        let splits = forms.iter().flat_map(|parts| split(parts, companion));
        let mut owners: Vec<String> = splits.map(|texts| image_key(&texts)).collect();
        owners.retain(|image| self.apply(image) == companion);
        owners.dedup();
        owners
    }

    /// The pattern for keys with a folder and an extension, and for those without.
    fn forms(&self) -> Vec<Vec<Part>> {
        let mut forms = vec![self.parts.clone()];
        for field in [Field::Dir, Field::Ext] {
            if self.has(field) {
                let without: Vec<_> = forms.iter().map(|parts| leave_out(parts, field)).collect();
                forms.extend(without);
            }
        }
        forms
    }
}

impl Field {
    fn may_hold(self, text: &str) -> bool {
        match self {
            Self::Key | Self::Dir | Self::Stem => true,
            Self::Name => !text.contains('/'),
            Self::Ext => !text.contains(['/', '.']),
        }
    }
}

/// With the slash that follows a folder, and the point before an extension.
fn leave_out(parts: &[Part], field: Field) -> Vec<Part> {
    let (mut left, mut follows) = (Vec::new(), false);
    for part in parts {
        match part {
            Part::Field(this) if *this == field => {
                if let (Field::Ext, Some(Part::Text(text))) = (field, left.last_mut())
                    && text.ends_with('.')
                {
                    text.pop();
                }
                follows = field == Field::Dir;
                continue;
            }
            Part::Text(text) if follows => {
                let text = text.strip_prefix('/').unwrap_or(text);
                left.push(Part::Text(text.to_owned()));
            }
            part => left.push(part.clone()),
        }
        follows = false;
    }
    left
}

/// All ways in which the parts make up a text.
fn split<'a>(parts: &[Part], text: &'a str) -> Vec<FieldTexts<'a>> {
    match parts.split_first() {
        None if text.is_empty() => vec![Vec::new()],
        None => Vec::new(),
        Some((Part::Text(prefix), others)) => {
            let rest = text.strip_prefix(prefix.as_str());
            rest.map_or_else(Vec::new, |rest| split(others, rest))
        }
        Some((Part::Field(field), others)) => {
            let ends = (0..=text.len()).filter_map(|end| text.split_at_checked(end));
            let ends = ends.filter(|(held, _)| field.may_hold(held));
            let splits = ends.flat_map(|(held, rest)| {
                let rests = split(others, rest).into_iter();
                rests.map(move |texts| [texts, vec![(*field, held)]].concat())
            });
            splits.collect()
        }
    }
}

fn image_key(texts: &FieldTexts<'_>) -> String {
    let text_of = |field| texts.iter().find(|(this, _)| *this == field);
    let text_of = |field| text_of(field).map(|(_, text)| *text);
    if let Some(key) = text_of(Field::Key) {
        return key.to_owned();
    }
    let join = |first: Option<&str>, between, last: Option<&str>| match (first, last) {
        (Some(first), Some(last)) => format!("{first}{between}{last}"),
        (one, other) => one.or(other).unwrap_or_default().to_owned(),
    };
    match text_of(Field::Stem) {
        Some(stem) => join(Some(stem), '.', text_of(Field::Ext)),
        None => join(text_of(Field::Dir), '/', text_of(Field::Name)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: &str = "{key}.x,x/{key},t_{dir}/a/b_{name},{stem}@2x.{ext},{stem}/a.{ext}.b";

    #[test]
    fn what_several_images_may_have_is_known_by_its_shape() {
        let patterns = CompanionPatterns::parse("{stem}.webp,{dir}-{name},t/{name}").unwrap();
        for shared in ["a.webp", "a/b-c", "-c", "t/c"] {
            assert!(patterns.may_share(shared), "{shared}");
        }
        for other in ["a.png", "t/c/d", "x/t/c"] {
            assert!(!patterns.may_share(other), "{other}");
        }
        assert_eq!(patterns.owners_of("a.webp").count(), 0);
    }

    proptest! {
        #[test]
        fn each_companion_leads_back_to_its_image(image in "[aä2@x._/]{1,8}") {
            let patterns = CompanionPatterns::parse(OWN).unwrap();
            for companion in patterns.of_image(&image) {
                prop_assert!(patterns.owners_of(&companion).any(|owner| owner == image), "{companion}");
            }
        }
    }
}
