//! Objects beside the sampled images that no row and no companion names: they would stay behind.

use std::collections::{BTreeMap, HashSet};

use aws_sdk_s3::operation::list_objects_v2::builders::ListObjectsV2FluentBuilder;
use bucket_brigade_common::companions::CompanionPatterns;
use bucket_brigade_common::ledger::RunSpec;
use bucket_brigade_common::object_store::s3::S3Bucket;
use bucket_brigade_common::path_rule::PathRule;

use super::SampleRow;
use super::check::PlanChecks;
use super::table_inspector::TableInspector;

/// Images whose neighbours are listed, with about thirty requests each.
const MAX_IMAGES: usize = 5;

const MAX_KEYS: i32 = 20;

const MAX_FOLDERS: usize = 20;

const MAX_PATTERNS: usize = 8;

/// What stands between a name and what is added to it.
const SEPARATORS: [&str; 5] = [".", "_", "-", "@", "/"];

/// What names of smaller pictures begin with.
const NAME_PREFIXES: [&str; 12] = [
    "thumb", "small", "medium", "large", "mini", "tiny", "preview", "resized", "square", "s_",
    "m_", "l_",
];

/// Keys by the pattern that would name them.
type Neighbours = BTreeMap<String, Vec<String>>;

/// The key of an image after the prefix, and its parts.
struct ImageKey<'a> {
    bucket: &'a S3Bucket,
    prefix: &'a str,
    key: &'a str,
}

/// Warns of them. Not where the bucket or the table cannot be asked.
pub(super) async fn check_neighbours(
    run: &RunSpec,
    inspector: Option<&TableInspector>,
    source: &S3Bucket,
    samples: &[SampleRow],
    checks: &mut PlanChecks,
) {
    if let Some(found) = find_neighbours(run, inspector, source, samples).await {
        warn_of(run.options.companions.as_ref(), &found, checks);
    }
}

async fn find_neighbours(
    run: &RunSpec,
    inspector: Option<&TableInspector>,
    source: &S3Bucket,
    samples: &[SampleRow],
) -> Option<Neighbours> {
    let rule = &run.rule;
    // An image may share its name with another, whose companions they are.
    let known: HashSet<String> = samples
        .iter()
        .flat_map(|sample| rule.companions_of(&sample.route))
        .map(|companion| companion.route.source_key)
        .collect();
    let mut found = Neighbours::new();
    let readable = samples.iter().filter(|one| one.size_bytes.is_some());
    for sample in readable.take(MAX_IMAGES) {
        let image = ImageKey {
            bucket: source,
            prefix: rule.source_key_prefix(),
            key: sample
                .route
                .source_key
                .strip_prefix(rule.source_key_prefix())?,
        };
        for (pattern, key) in image.neighbours().await? {
            if !known.contains(&key) && CompanionPatterns::parse(&pattern).is_ok() {
                found.entry(pattern).or_default().push(key);
            }
        }
    }
    if !found.is_empty() {
        drop_named(inspector?, rule, &mut found).await?;
    }
    Some(found)
}

impl ImageKey<'_> {
    /// None where the bucket cannot be listed.
    async fn neighbours(&self) -> Option<Vec<(String, String)>> {
        let (folder, name) = self
            .key
            .split_at(self.key.rfind('/').map_or(0, |at| at + 1));
        let dir = "{dir}/";
        let mut found = self.with_longer_names(name).await?;
        let mut others = Vec::new();
        for sub in self.list_folders(folder).await? {
            let pattern = format!("{dir}{sub}{{name}}");
            others.push((format!("{folder}{sub}{name}"), pattern));
        }
        if !folder.is_empty() {
            for sub in self.list_folders("").await? {
                others.push((format!("{sub}{}", self.key), format!("{sub}{{key}}")));
            }
        }
        for word in NAME_PREFIXES {
            let first = self.list(&format!("{folder}{word}"), 1).await?;
            let Some(first) = first.first() else { continue };
            let first = &first[folder.len()..];
            let ends = first.match_indices(['_', '-', '/']).map(|(at, _)| at + 1);
            for text in ends.map(|end| &first[..end]) {
                let pattern = format!("{dir}{text}{{name}}");
                others.push((format!("{folder}{text}{name}"), pattern));
            }
        }
        others.retain(|(rest, _)| rest != self.key);
        for (rest, pattern) in others {
            let key = format!("{}{rest}", self.prefix);
            if let Ok(Some(_)) = self.bucket.head(&key).await {
                found.push((pattern, key));
            }
        }
        Some(found)
    }

    /// Those whose keys begin with the image's, with or without its extension.
    async fn with_longer_names(&self, name: &str) -> Option<Vec<(String, String)>> {
        let ext = name.rsplit_once('.').filter(|(stem, _)| !stem.is_empty());
        let ext = ext.map(|(_, ext)| format!(".{ext}"));
        let stem = ext.as_ref().and_then(|ext| self.key.strip_suffix(&**ext));
        let mut found = Vec::new();
        for separator in SEPARATORS {
            let start = format!("{}{separator}", self.key);
            for key in self.list(&start, MAX_KEYS).await? {
                let pattern = format!("{{key}}{}", &key[self.key.len()..]);
                found.push((pattern, format!("{}{key}", self.prefix)));
            }
            let Some((stem, ext)) = stem.zip(ext.as_deref()) else {
                continue;
            };
            for key in self.list(&format!("{stem}{separator}"), MAX_KEYS).await? {
                let added = &key[stem.len()..];
                // With more than one dot it belongs to an image of this name with another extension.
                if added.matches('.').count() > 1 || key.starts_with(self.key) {
                    continue;
                }
                let pattern = match added.strip_suffix(ext) {
                    Some(middle) if !middle.is_empty() => format!("{{stem}}{middle}.{{ext}}"),
                    _ => format!("{{stem}}{added}"),
                };
                found.push((pattern, format!("{}{key}", self.prefix)));
            }
        }
        Some(found)
    }

    async fn list(&self, start: &str, most: i32) -> Option<Vec<String>> {
        let request = self.list_request(start).max_keys(most);
        let listed = request.send().await.ok()?;
        let keys = listed.contents().iter().filter_map(|object| object.key());
        let rests = keys.filter_map(|key| key.strip_prefix(self.prefix));
        Some(rests.map(ToOwned::to_owned).collect())
    }

    /// The folders in one, each with the slash at its end.
    async fn list_folders(&self, folder: &str) -> Option<Vec<String>> {
        let prefix = format!("{}{folder}", self.prefix);
        // A page: images come before folders.
        let request = self.list_request(folder).delimiter("/");
        let listed = request.send().await.ok()?;
        let folders = listed.common_prefixes().iter();
        let folders = folders.filter_map(|folder| folder.prefix()?.strip_prefix(&*prefix));
        let subs = folders.filter(|sub| *sub != "/").take(MAX_FOLDERS);
        Some(subs.map(ToOwned::to_owned).collect())
    }

    fn list_request(&self, start: &str) -> ListObjectsV2FluentBuilder {
        let request = self.bucket.client().list_objects_v2();
        let prefix = format!("{}{start}", self.prefix);
        request.bucket(self.bucket.name()).prefix(prefix)
    }
}

/// Takes away what some row names.
async fn drop_named(
    inspector: &TableInspector,
    rule: &PathRule,
    found: &mut Neighbours,
) -> Option<()> {
    let paths_of = |key: &String| {
        let rest = key.strip_prefix(rule.source_key_prefix()).unwrap_or(key);
        let rests = rule.encoding().usual_spellings(rest).into_iter();
        let prefixes = [rule.old_prefix(), rule.new_prefix()];
        let paths = rests.flat_map(move |rest| prefixes.map(|prefix| format!("{prefix}{rest}")));
        paths.collect::<Vec<_>>()
    };
    let paths: Vec<String> = found.values().flatten().flat_map(paths_of).collect();
    let named = inspector.find_paths(&paths).await.ok()?;
    for keys in found.values_mut() {
        keys.retain(|key| !paths_of(key).iter().any(|path| named.contains(path)));
    }
    found.retain(|_, keys| !keys.is_empty());
    Some(())
}

fn warn_of(known: Option<&String>, found: &Neighbours, checks: &mut PlanChecks) {
    let mut patterns: Vec<(&String, &Vec<String>)> = found.iter().collect();
    patterns.sort_by_key(|(_, keys)| std::cmp::Reverse(keys.len()));
    patterns.truncate(MAX_PATTERNS);
    let Some(key) = patterns.first().and_then(|(_, keys)| keys.first()) else {
        return;
    };
    let new = patterns.iter().map(|(pattern, _)| *pattern);
    let all: Vec<&str> = known.into_iter().chain(new).map(|text| &**text).collect();
    let all = all.join(",");
    checks.warn(
        "companions",
        format!("beside the images there are objects that no row and no companion names, such as '{key}'"),
        format!("they stay behind; COMPANIONS='{all}' moves them along"),
    );
}
