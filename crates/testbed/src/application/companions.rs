//! Objects that belong to an image and that no row names, as the application puts them.

use super::{Application, ObjectLocation};

/// The setting `COMPANIONS` for them.
pub const SEEDED_COMPANIONS: &str = "{key}.200x200.jpg,{dir}/thumb_{name}";

impl Application {
    /// Where the companions of the image at a path are.
    pub fn companion_locations(&self, path: &str) -> Vec<ObjectLocation> {
        if self.companions.is_empty() {
            return Vec::new();
        }
        let image = self.location_of(path);
        let name = image.key.rfind('/').map_or(0, |slash| slash + 1);
        let (folder, name) = image.key.split_at(name);
        let keys = [
            format!("{}.200x200.jpg", image.key),
            format!("{folder}thumb_{name}"),
        ];
        let bucket = image.bucket.clone();
        let locations = keys.into_iter().map(|key| ObjectLocation {
            key,
            bucket: bucket.clone(),
        });
        locations.collect()
    }
}
