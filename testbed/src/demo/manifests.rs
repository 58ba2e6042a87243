//! What the demo applies.
//!
//! Decides the applications. Plain Kubernetes manifests: nothing in them is ours.

use crate::images::{REDIS, WEB};

pub const NODE_PORT: u16 = 30080;
pub const WEB_REPLICAS: usize = 3;
/// The host that redis keeps its data on.
pub const REDIS_HOST: &str = "host2";
pub const KEYS: usize = 100;

pub fn web() -> String {
    format!(
        "\
apiVersion: apps/v1
kind: Deployment
metadata: {{ name: web, labels: {{ app: web }} }}
spec:
  replicas: {WEB_REPLICAS}
  selector: {{ matchLabels: {{ app: web }} }}
  template:
    metadata: {{ labels: {{ app: web }} }}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: nginx
        image: {WEB}
        ports: [{{ containerPort: 80 }}]
        resources: {{ requests: {{ cpu: 50m, memory: 32Mi }} }}
---
apiVersion: v1
kind: Service
metadata: {{ name: web }}
spec:
  type: NodePort
  selector: {{ app: web }}
  ports: [{{ port: 80, targetPort: 80, nodePort: {NODE_PORT} }}]
"
    )
}

pub fn redis() -> String {
    format!(
        "\
apiVersion: apps/v1
kind: Deployment
metadata: {{ name: redis, labels: {{ app: redis }} }}
spec:
  replicas: 1
  selector: {{ matchLabels: {{ app: redis }} }}
  template:
    metadata: {{ labels: {{ app: redis }} }}
    spec:
      nodeSelector: {{ kubernetes.io/hostname: {REDIS_HOST} }}
      terminationGracePeriodSeconds: 5
      containers:
      - name: redis
        image: {REDIS}
        ports: [{{ containerPort: 6379 }}]
        resources: {{ requests: {{ cpu: 50m, memory: 32Mi }} }}
        volumeMounts: [{{ name: data, mountPath: /data }}]
      volumes:
      - name: data
        hostPath: {{ path: /srv/redis, type: DirectoryOrCreate }}
---
apiVersion: v1
kind: Service
metadata: {{ name: redis }}
spec:
  selector: {{ app: redis }}
  ports: [{{ port: 6379 }}]
"
    )
}

pub fn fill() -> String {
    format!(
        "\
apiVersion: batch/v1
kind: Job
metadata: {{ name: fill }}
spec:
  backoffLimit: 4
  template:
    metadata: {{ labels: {{ app: fill }} }}
    spec:
      restartPolicy: Never
      containers:
      - name: fill
        image: {REDIS}
        command:
        - sh
        - -ec
        - |
          redis=redis.default.svc.cluster.local
          for i in $(seq 1 {KEYS}); do echo \"SET key:$i value-$i\"; done | redis-cli -h $redis > /dev/null
          echo \"redis holds $(redis-cli -h $redis DBSIZE) keys\"
"
    )
}
