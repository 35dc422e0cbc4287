"""A typical Flask application with Celery, as the manuals of both show it; it knows nothing of this product."""

import os

from celery import Celery, Task, shared_task
from celery.result import AsyncResult
from flask import Flask, request


def celery_init_app(app: Flask) -> Celery:
    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app


def create_app() -> Flask:
    app = Flask("webapp")
    app.config.from_mapping(
        GREETING="hello",
        CELERY={
            "broker_url": os.environ["CELERY_URL"],
            "result_backend": os.environ["RESULT_URL"],
            "task_ignore_result": True,
            "beat_schedule": {"tick-every-second": {"task": "webapp.tick", "schedule": 1.0}},
        },
    )
    app.config.from_prefixed_env()
    celery_init_app(app)

    @app.post("/add")
    def start_add() -> dict[str, object]:
        a = request.form.get("a", type=int)
        b = request.form.get("b", type=int)
        result = add_together.delay(a, b)
        return {"result_id": result.id}

    @app.post("/block")
    def start_block() -> dict[str, object]:
        result = process.delay(total=request.form.get("total", type=int))
        return {"result_id": result.id}

    @app.get("/result/<id>")
    def result(id: str) -> dict[str, object]:
        result = AsyncResult(id)
        ready = result.ready()
        return {
            "ready": ready,
            "successful": result.successful() if ready else None,
            "value": result.get() if ready else result.result,
        }

    return app


@shared_task(ignore_result=False)
def add_together(a: int, b: int) -> str:
    from flask import current_app

    return f"{current_app.config['GREETING']}: {a + b}"


@shared_task(bind=True, ignore_result=False)
def process(self: Task, total: int) -> object:
    for i in range(total):
        self.update_state(state="PROGRESS", meta={"current": i + 1, "total": total})
    return {"current": total, "total": total}


@shared_task(name="webapp.tick")
def tick() -> None:
    with open(os.environ["TICKS"], "a") as ticks:
        ticks.write("tick\n")
